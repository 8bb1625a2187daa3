"""What `renderkiln doctor` finds, one thing at a time. The producer and the worker each look at what is theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .settings import Settings

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. Holds no secret: it is printed, and pasted into bug reports."""

    #: What was looked at, in a word or two.
    about: str
    #: `problem`: something will not work. `warning`: it works, and something is not as it should be.
    state: State
    #: One plain line.
    says: str
    #: What to do, or to type, where something is wrong.
    do: str | None = None
    #: The same for scripts: plain values, sizes in bytes.
    facts: Mapping[str, Any] = field(default_factory=dict)


#: Looks at some things, and starts and changes nothing. May raise RenderkilnError or OSError, which becomes a finding.
Checkup = Callable[[Settings], list[Finding]]


def ok(about: str, says: str, **facts: Any) -> Finding:
    """All is well."""
    return Finding(about, "ok", says, None, facts)


def warning(about: str, says: str, do: str, **facts: Any) -> Finding:
    """It works, and something is not as it should be."""
    return Finding(about, "warning", says, do, facts)


def problem(about: str, says: str, do: str, **facts: Any) -> Finding:
    """Something will not work."""
    return Finding(about, "problem", says, do, facts)


def size(count: float) -> str:
    """Bytes for people: `12.3 GB`, `850 MB`."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"

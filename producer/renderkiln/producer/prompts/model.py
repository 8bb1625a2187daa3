"""What a prompt list is made of: rows as written, items as asked for, and where each stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from renderkiln.schema import JobOptions, RenderSpec
from renderkiln.schema.errors import InvalidSpecError, PromptListError

from .sweeps import Sweep, size

#: Most jobs that one prompt may become, by sweeps and combinations together.
MAX_JOBS_PER_PROMPT = 1_000_000


class Where(NamedTuple):
    """A place in a prompt list: the file (or `-`, or `prompt`), the line and the column, both from 1."""

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in self if part is not None)

    def shifted(self, offset: int) -> Where:
        """The place `offset` characters further on the same line."""
        return self._replace(column=(self.column or 1) + offset)

    def error(self, message: str) -> PromptListError:
        """The error that says `message` of this place."""
        return PromptListError(message, source=self.source, line=self.line, column=self.column)


#: Where the value of a field stands; `offset` characters into it, where the form of the list lets that be
#: told.
Locate: TypeAlias = Callable[[str, int], Where]


@dataclass(frozen=True)
class Row:
    """One entry of a list as it is written, its values checked one by one."""

    fields: Mapping[str, Any]
    where: Where
    locate: Locate


@dataclass(frozen=True)
class Item:
    """One job to be, as a flat mapping of spec and job fields."""

    fields: dict[str, Any]
    where: Where
    #: The folder that image paths in the list are relative to.
    folder: Path = field(default=Path(), compare=False)
    #: Fields whose value was given outside the list, by a flag or a sweep: their paths start at the working
    #: folder.
    outside: frozenset[str] = field(default=frozenset(), compare=False)
    locate: Locate | None = field(default=None, compare=False, repr=False)

    def place(self, name: str) -> Where:
        """Where the value of a field stands, as near as it is known."""
        if self.locate is None or name in self.outside:
            return self.where
        return self.locate(name, 0)


@dataclass(frozen=True)
class ListOptions:
    """How lists are to be read: what the flags of the command line say.

    Raises:
        InvalidSpecError: a field is swept twice, or the sweeps make more than a million jobs of
            each prompt.
    """

    #: Fields for what a list leaves open.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    #: Each prompt is rendered with every combination of these values; the first sweep changes slowest.
    sweeps: tuple[Sweep, ...] = ()
    #: Folder of wildcard files.
    wildcards: Path | None = None
    #: Make every combination of alternatives and wildcards instead of drawing one.
    combinations: bool = False
    #: Take `{a|b}` and `__name__` for what they are; false: prompts are taken literally.
    expand: bool = True
    #: Seeds that are not given are drawn anew by each `read`, not derived from the prompt.
    random_seeds: bool = False
    #: The form of standard input and of files whose name does not say it; empty: see `formats`.
    format: str | None = None

    def __post_init__(self) -> None:
        swept: set[str] = set()
        for sweep in self.sweeps:
            if sweep.field in swept:
                raise InvalidSpecError(f"{sweep.field} is swept twice: put all its values into one sweep")
            swept.add(sweep.field)
        if size(self.sweeps) > MAX_JOBS_PER_PROMPT:
            raise InvalidSpecError(
                f"the sweeps make {size(self.sweeps):,} jobs of each prompt; at most {MAX_JOBS_PER_PROMPT:,}"
            )


@dataclass(frozen=True)
class Request:
    """A job that has passed every check that can be made without a worker."""

    spec: RenderSpec
    options: JobOptions
    where: Where

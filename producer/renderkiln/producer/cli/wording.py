"""How the commands put things into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from renderkiln.home.showing import plain
from renderkiln.producer.controlnets import controlnet_text

if TYPE_CHECKING:
    from rich.console import Console


def say(console: Console, text: str) -> None:
    """Prints text as it stands: rich would break lines in the middle of a command that is there to be copied."""
    console.print(plain(text, lines=True), markup=False, highlight=False, soft_wrap=True)


def count(number: int, thing: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def in_words(value: Any) -> str:
    """The value of a field of a spec; ControlNets as --controlnet takes them."""
    return "; ".join(controlnet_text(each) for each in value) if isinstance(value, (list, tuple)) else str(value)


def duration(seconds: float) -> str:
    """Seconds in words: `42 s`, `3 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

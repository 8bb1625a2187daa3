"""Text on contact sheets: what Pillow's own font can show, wrapped to lines that fit.

The bundled font is the same on every machine, so sheets are too; it knows little more than ASCII. Accents are
lost; what it has no shapes for (Chinese, Cyrillic, emoji …) becomes `[…]`.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Any

from PIL import ImageFont

_UNKNOWN = "[…]"
_ELLIPSIS = "…"
#: Characters of a text that are looked at: more than any two lines hold.
_MAX = 600
#: Letters that Unicode does not take apart, and what people write for them in ASCII.
_PLAIN = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "œ": "oe", "ı": "i"}
    | {"–": "-", "—": "-", "“": '"', "”": '"', "„": '"', "×": "x", "\u2011": "-"}
)


@lru_cache(maxsize=8)
def font(size: int) -> Any:
    """Pillow's bundled font at a size in pixels."""
    return ImageFont.load_default(size)


def plain(text: str) -> str:
    """The text on one line, with what the font has no shape for replaced."""
    shown = ""
    for char in unicodedata.normalize("NFKD", " ".join(text[:_MAX].split()).translate(_PLAIN)):
        if unicodedata.combining(char):
            continue
        if _has_shape(char):
            shown += char
        elif not shown.rstrip().endswith(_UNKNOWN):
            shown += _UNKNOWN
    return " ".join(shown.split())


def wrap(text: str, at_size: Any, width: int, lines: int) -> list[str]:
    """At most so many lines of at most `width` pixels; the last ends in an ellipsis where there was more."""
    words = text.split(" ")
    found: list[str] = []
    while words and len(found) < lines:
        line = words.pop(0)
        if at_size.getlength(line) > width:
            cut = _fitting(line, at_size, width)
            words.insert(0, line[cut:])
            line = line[:cut]
        else:
            while words and at_size.getlength(f"{line} {words[0]}") <= width:
                line += f" {words.pop(0)}"
        found.append(line)
    if words and found:
        last = found[-1]
        while last and at_size.getlength(last + _ELLIPSIS) > width:
            last = last[:-1]
        found[-1] = last.rstrip(" ,.;") + _ELLIPSIS
    return found or [""]


def _fitting(word: str, at_size: Any, width: int) -> int:
    """How many characters of a long word fit; at least one."""
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        if at_size.getlength(word[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


@lru_cache(maxsize=4096)
def _has_shape(char: str) -> bool:
    """Whether the font draws something of its own: characters that it lacks all come out as the same box."""
    if char == " ":
        return True
    if not char.isprintable():
        return False
    return bytes(font(16).getmask(char)) != _box()


@lru_cache(maxsize=1)
def _box() -> bytes:
    return bytes(font(16).getmask("\U0010ffff"))

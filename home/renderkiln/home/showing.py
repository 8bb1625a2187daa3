"""Showing text that others wrote, in a terminal or in a log."""

from __future__ import annotations

import re

#: What moves a terminal's cursor, colours or title, ends a line, or turns the direction of what follows.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_BUT_LINES = re.compile(_CONTROLS.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def plain(text: str, *, lines: bool = False) -> str:
    """Text as it may be shown, whoever wrote it: what a terminal would act on is shown as its escape.

    Args:
        lines: whether the ends of lines stay what they are.
    """
    return (_BUT_LINES if lines else _CONTROLS).sub(lambda match: _escape(match.group()), text)


def plain_json(text: str) -> str:
    """The same for JSON, whose value stays the same."""
    return _BUT_LINES.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()

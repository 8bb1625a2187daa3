"""Reads `.txt` lists: a prompt a line.

Blank lines and lines that start with `#` are left out. A line that starts with `--` holds options, as
AUTOMATIC1111's "Prompts from file" has them. A prompt that starts with `#` or `--` itself is written with a
backslash before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .a1111 import parse_line
from .model import Locate, Row, Where
from .source import Source, lines

_ESCAPED = re.compile(r"\\+(?:#|--)")


def read_txt(source: Source) -> Iterator[Row]:
    """The rows of a `.txt` list. Raises PromptListError."""
    with source.open() as stream:
        for number, line in lines(stream, source.name):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            start = Where(source.name, number, len(line) - len(line.lstrip()) + 1)
            if text.startswith("--"):
                yield parse_line(text, start)
                continue
            if (lone := text.find("\r")) >= 0:
                raise start.shifted(lone).error("a carriage return inside the line; end lines with \\n or \\r\\n")
            skipped = 1 if _ESCAPED.match(text) else 0
            yield Row({"prompt": text[skipped:]}, start, _locator(start.shifted(skipped)))


def _locator(start: Where) -> Locate:
    return lambda _name, offset: start.shifted(offset)

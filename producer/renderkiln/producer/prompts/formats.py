"""Which form a list has: by its name, or, where that does not say it, by its first line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from renderkiln.schema.errors import InvalidSpecError, did_you_mean

from .jsonl import read_jsonl
from .model import Row, Where
from .source import Source, lines
from .table import read_csv
from .txt import read_txt
from .yamls import read_yaml

READERS: dict[str, Callable[[Source], Iterator[Row]]] = {
    "txt": read_txt,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "yaml": read_yaml,
}
SUFFIXES = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".yaml": "yaml",
    ".yml": "yaml",
}
_OBJECT = re.compile(r'\s*\{\s*["}]')


def is_list(source: str) -> bool:
    """Whether an argument names a list; otherwise it is a prompt itself.

    A list is `-`, anything that exists under that name (a folder too, which is then refused), and any name
    that ends as lists do, so that a misspelt file is not rendered as a prompt.
    """
    if source == "-":
        return True
    try:
        if Path(source).suffix.lower() in SUFFIXES:
            return True
        return bool(source.strip()) and Path(source).exists()
    except (OSError, ValueError):  # too long for a name, or a NUL
        return False


def check_format(name: str) -> str:
    """The form of that name. Raises InvalidSpecError."""
    if name not in READERS:
        raise InvalidSpecError(
            f"unknown form of list {name!r}.{did_you_mean(name, READERS)} Known are txt, csv, jsonl, yaml."
        )
    return name


def format_of(path: str, source: Source, given: str | None) -> str:
    """The form of a list: from its suffix, else the one that was given, else jsonl or txt by its first line.

    Raises:
        PromptListError: the suffix is that of something else.
        InvalidSpecError: there is no such form as was given.
    """
    given = check_format(given) if given is not None else None
    suffix = Path(path).suffix.lower() if path != "-" else ""
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if given is not None:
        return given
    if suffix:
        raise Where(path).error(
            f"{suffix} is no form of list; expected {', '.join(SUFFIXES)}, or say which with --format"
        )
    with source.open() as stream:
        for _, line in lines(stream, source.name):
            if line.strip():
                return "jsonl" if _OBJECT.match(line) else "txt"
    return "txt"

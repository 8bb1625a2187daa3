"""Reads `.jsonl` lists: one JSON object a line, its keys the names of fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from renderkiln.schema.errors import InvalidSpecError

from .fields import PROMPT_FIELDS, check, check_text, shorten
from .model import Row, Where
from .source import Source, lines

_SPACE = re.compile(r"[ \t\r\n]*")


class _RefusedError(ValueError):
    """Raised for JSON that a list may not hold; knows the key at which it was seen, if any."""

    def __init__(self, message: str, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


def read_jsonl(source: Source) -> Iterator[Row]:
    """The rows of a `.jsonl` list. Raises PromptListError."""
    with source.open() as stream:
        for number, line in lines(stream, source.name):
            if line.strip():
                yield _row(line, Where(source.name, number, 1))


def _row(line: str, start: Where) -> Row:
    given = _load(line, start)

    def locate(name: str, _offset: int) -> Where:
        return start.shifted(_keys(line).get(name, [0])[0])

    fields: dict[str, Any] = {}
    for name, value in given.items():
        try:
            fields[name] = (check_text if name in PROMPT_FIELDS else check)(name, value)
        except InvalidSpecError as error:
            raise locate(name, 0).error(str(error)) from None
    return Row(fields, start, locate)


def _load(line: str, start: Where) -> dict[str, Any]:
    try:
        given = json.loads(line, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        message = f'not JSON: {error.msg}; expected one object such as {{"prompt": "a red hat"}}'
        raise start.shifted(min(error.pos, len(line.rstrip()))).error(message) from None
    except _RefusedError as error:
        at = _keys(line).get(error.key or "", [])
        raise start.shifted(at[1] if len(at) > 1 else 0).error(str(error)) from None
    except ValueError as error:  # a number of thousands of digits
        raise start.error(f"not usable: {error}") from None
    except RecursionError:
        raise start.error("nested too deeply; expected one flat object") from None
    if not isinstance(given, dict):
        raise start.error(f'expected an object such as {{"prompt": "a red hat"}}, found {shorten(given)}')
    return given


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(f"key {shorten(key)} is there twice", key)
            seen.add(key)
    return result


def _constant(name: str) -> None:
    raise _RefusedError(f"{name} is not a number that a list may hold")


def _keys(line: str) -> dict[str, list[int]]:
    """Where the keys of the line's object start, for those up to the first thing that is not JSON."""
    found: dict[str, list[int]] = {}
    decoder = json.JSONDecoder()
    at = _skip(line, 0) + 1
    try:
        while True:
            at = _skip(line, at)
            begin = at
            key, at = decoder.raw_decode(line, at)
            if not isinstance(key, str):
                return found
            found.setdefault(key, []).append(begin)
            at = _skip(line, at)
            if line[at : at + 1] != ":":
                return found
            _, at = decoder.raw_decode(line, _skip(line, at + 1))
            at = _skip(line, at)
            if line[at : at + 1] != ",":
                return found
            at += 1
    except (ValueError, RecursionError):
        return found


def _skip(line: str, at: int) -> int:
    match = _SPACE.match(line, at)
    assert match is not None  # it matches nothing, too
    return match.end()

"""Reads `.csv` lists: the first line names the fields, each further record is a job.

An empty cell leaves its field open. `labels.NAME` is a column for one label. Commas, semicolons or tabs
separate, whichever the first line uses.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from renderkiln.schema.errors import InvalidSpecError

from .fields import KNOWN, PROMPT_FIELDS, check, check_text, unknown
from .model import Row, Where
from .source import Source, lines

_LABEL = "labels."


def read_csv(source: Source) -> Iterator[Row]:
    """The rows of a `.csv` list; a position's column is the number of the cell. Raises PromptListError."""
    with source.open() as stream:
        records = _records(lines(stream, source.name), source.name)
        first = next(records, None)
        if first is None:
            return
        start, cells = first
        names = _header(cells, start)
        for where, cells in records:
            if len(cells) != len(names):
                raise where._replace(column=min(len(cells), len(names)) + 1).error(
                    f"expected {len(names)} cells ({', '.join(names)}), found {len(cells)}"
                )
            yield _row(names, cells, where)


def _records(numbered: Iterator[tuple[int, str]], name: str) -> Iterator[tuple[Where, list[str]]]:
    """Records with the line on which each starts; blank lines are left out."""
    first, skipped = "", 0
    for number, line in numbered:
        if line.strip():
            first, skipped = line, number - 1
            break
    if not first:
        return
    line = first

    def remember(each: str) -> str:
        nonlocal line
        line = each
        return each

    feed = map(remember, chain([first], (each for _, each in numbered)))
    reader = csv.reader(feed, delimiter=_delimiter(first), strict=True)
    while True:
        begin = skipped + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise Where(name, begin, 1).error(f"{error}; expected a CSV record, quotes doubled inside quotes") from None
        if cells is None:
            return
        # A lone cell of spaces is one only in quotes; else it is a blank line.
        if cells and (len(cells) > 1 or (cells[0] and line.strip())):
            yield Where(name, begin, 1), cells


def _delimiter(header: str) -> str:
    counts = {mark: header.count(mark) for mark in ",;\t"}
    return max(counts, key=lambda mark: counts[mark])


def _header(cells: list[str], where: Where) -> list[str]:
    names = [cell.strip() for cell in cells]
    for number, name in enumerate(names, 1):
        place = where._replace(column=number)
        if not name:
            raise place.error("the column has no name; the first line names the field of each column")
        if name in names[: number - 1]:
            raise place.error(f"column {name!r} is there twice")
        if name == "labels":
            raise place.error("expected labels.NAME, such as labels.project: a column for each label")
        if name not in KNOWN and not (name.startswith(_LABEL) and name != _LABEL):
            raise place.error(f"{unknown(name)} The first line of a .csv list names the field of each column.")
    return names


def _row(names: list[str], cells: list[str], where: Where) -> Row:
    fields: dict[str, Any] = {}
    labels: dict[str, str] = {}
    for number, (name, cell) in enumerate(zip(names, cells, strict=True), 1):
        if name.startswith(_LABEL):
            if cell:
                labels[name.removeprefix(_LABEL)] = cell
        elif cell if name in PROMPT_FIELDS else cell.strip():
            convert: Callable[[str, Any], Any] = check_text if name in PROMPT_FIELDS else check
            try:
                fields[name] = convert(name, cell if name in PROMPT_FIELDS else cell.strip())
            except InvalidSpecError as error:
                raise where._replace(column=number).error(f"{error} (column {name!r})") from None
    if labels:
        first = next(number for number, name in enumerate(names, 1) if name.startswith(_LABEL))
        try:
            fields["labels"] = check("labels", labels)
        except InvalidSpecError as error:
            raise where._replace(column=first).error(str(error)) from None

    def locate(name: str, _offset: int) -> Where:
        return where._replace(column=names.index(name) + 1) if name in names else where

    return Row(fields, where, locate)

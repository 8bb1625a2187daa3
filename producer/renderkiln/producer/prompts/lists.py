"""Prompt lists: opens what the user named, and gives its items as often as they are asked for."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO, TypeAlias

from renderkiln.home.pictures.naming import batch_name
from renderkiln.schema.errors import InvalidSpecError

from .expand import Expander, Seen
from .fields import check_text
from .formats import READERS, format_of, is_list
from .model import Item, ListOptions, Row, Where
from .source import Source, open_source

Rows: TypeAlias = Callable[[], Iterator[Row]]
#: What errors call a prompt that was given as it is.
PROMPT = "prompt"


class PromptList:
    """The items of a list. Iterating reads the list anew, so that its length does not matter.

    Raises, while iterating:
        PromptListError: the list is not well formed, or has changed since it was opened.
    """

    def __init__(self, name: str, source: Source | None, rows: Rows, options: ListOptions) -> None:
        #: A name for the batch.
        self.name = name
        self._rows = rows
        self._source = source
        self._expander = Expander(
            options,
            source.folder if source else Path(),
            secrets.token_bytes(16) if options.random_seeds else None,
        )

    def __iter__(self) -> Iterator[Item]:
        return self.items(Seen())

    def items(self, seen: Seen) -> Iterator[Item]:
        """The items, where `seen` counts equal ones across several lists."""
        empty = True
        for row in self._rows():
            empty = False
            yield from self._expander.items(row, seen)
        if empty and self._source is not None:
            raise Where(self._source.name).error("the list holds no prompts")


def read(source: str, options: ListOptions | None = None, *, stdin: TextIO | None = None) -> PromptList:
    """Opens a list: the path of a file, `-` for standard input, or a prompt as it is.

    Raises:
        PromptListError: there is no such list, or it cannot be read.
        InvalidSpecError: a default in the options is unknown or outside its limits.
    """
    options = options or ListOptions()
    if not is_list(source):
        return PromptList(batch_name(source), None, lambda: _literal(source), options)
    opened = open_source(source, stdin=stdin)
    reader = READERS[format_of(source, opened, options.format)]
    name = "stdin" if source == "-" else batch_name(Path(source).stem)
    return PromptList(name, opened, lambda: reader(opened), options)


def _literal(prompt: str) -> Iterator[Row]:
    start = Where(PROMPT, 1, 1)
    try:
        text = check_text("prompt", prompt)
    except InvalidSpecError as error:
        raise start.error(str(error)) from None
    yield Row({"prompt": text}, start, lambda _name, offset: start.shifted(offset))

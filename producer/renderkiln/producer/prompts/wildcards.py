"""Turns templates into prompts, one drawn or every combination; reads the folder of wildcard files."""

from __future__ import annotations

import os
import random
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias
from weakref import WeakKeyDictionary

from renderkiln.schema.errors import PromptListError, did_you_mean
from renderkiln.schema.spec import MAX_PROMPT

from .model import MAX_JOBS_PER_PROMPT, Where
from .source import lines
from .templates import Choice, Template, TemplateError, Wildcard, parse

MAX_FILE = 4 << 20
#: Files that may refer to files, one to the next.
MAX_CHAIN = 32
#: Choices made for one prompt.
MAX_CHOICES = 10_000
#: Counts stop here; nothing that large is ever made.
_MANY = MAX_JOBS_PER_PROMPT + 1
#: Files looked at for names that are near to a misspelt one.
_LISTED = 5_000

#: Where the character at an offset of a template stands.
Place: TypeAlias = Callable[[int], Where]


class _Text:
    """A prompt in the making, which cannot grow without end."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = self._choices = 0

    def add(self, part: str) -> None:
        self._parts.append(part)
        self._length += len(part)
        if self._length > MAX_PROMPT:
            raise TemplateError(f"the prompt becomes longer than {MAX_PROMPT:,} characters", 0)

    def chose(self) -> None:
        self._choices += 1
        if self._choices > MAX_CHOICES:
            raise TemplateError(f"more than {MAX_CHOICES:,} choices in one prompt", 0)

    def __str__(self) -> str:
        return "".join(self._parts)


class Wildcards:
    """A folder of wildcard files, each read once and checked with all the files that it refers to.

    Files hold an entry a line, which may have alternatives and wildcards of its own; blank lines and lines
    that start with `#` are left out.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._entries: dict[str, tuple[Template, ...]] = {}
        #: By file, the number of prompts that its entries up to each one make.
        self._sums: dict[str, list[int]] = {}
        self._choices: WeakKeyDictionary[Choice, list[int]] = WeakKeyDictionary()

    def check(self, template: Template, place: Place, chain: tuple[str, ...] = ()) -> None:
        """Reads every file that the template refers to, and those that they refer to.

        Raises:
            PromptListError: one is missing, cannot be read, is outside of the folder, or refers to itself.
        """
        for part in template:
            if isinstance(part, Choice):
                for option in part.options:
                    self.check(option, place, chain)
            elif isinstance(part, Wildcard):
                self._load(part.name, place(part.at), chain)

    def draw(self, template: Template, rng: random.Random) -> str:
        """One prompt; each alternative and entry is as likely as its neighbours. Raises TemplateError."""

        def write(template: Template, text: _Text) -> None:
            for part in template:
                if isinstance(part, str):
                    text.add(part)
                else:
                    text.chose()
                    options = self._options(part)
                    write(options[rng.randrange(len(options))], text)

        text = _Text()
        write(template, text)
        return str(text)

    def count(self, template: Template) -> int:
        """How many prompts the template makes; at most one more than `MAX_JOBS_PER_PROMPT`."""
        product = 1
        for part in template:
            if not isinstance(part, str):
                product = min(product * self._cumulated(part)[-1], _MANY)
        return product

    def nth(self, template: Template, index: int) -> str:
        """Prompt `index`, from 0, of those that `count` counts; the last choice changes fastest.

        Raises:
            TemplateError: the prompt becomes too long.
        """

        def write(template: Template, index: int, text: _Text) -> None:
            radix = self.count(template)
            for part in template:
                if isinstance(part, str):
                    text.add(part)
                    continue
                text.chose()
                sums = self._cumulated(part)
                radix //= sums[-1]
                within, index = divmod(index, radix)
                chosen = bisect_right(sums, within)
                write(self._options(part)[chosen], within - (sums[chosen - 1] if chosen else 0), text)

        text = _Text()
        write(template, index, text)
        return str(text)

    def _options(self, part: Choice | Wildcard) -> tuple[Template, ...]:
        return part.options if isinstance(part, Choice) else self._entries[part.name]

    def _cumulated(self, part: Choice | Wildcard) -> list[int]:
        if isinstance(part, Choice):
            if part not in self._choices:
                self._choices[part] = list(accumulate(self.count(option) for option in part.options))
            return self._choices[part]
        if part.name not in self._sums:
            self._sums[part.name] = list(accumulate(self.count(entry) for entry in self._entries[part.name]))
        return self._sums[part.name]

    def _load(self, name: str, where: Where, chain: tuple[str, ...]) -> None:
        if name in chain:
            raise where.error(f"__{name}__ refers to itself: {' → '.join([*chain[chain.index(name) :], name])}")
        if name in self._entries:
            return
        if len(chain) >= MAX_CHAIN:
            raise where.error(f"more than {MAX_CHAIN} wildcard files refer to one another")
        path = self._path(name, where)
        entries: list[Template] = []
        with path.open("rb") as stream:
            for number, line in lines(stream, str(path)):
                text = line.strip()
                if not text or text.startswith("#"):
                    continue
                start = Where(str(path), number, len(line) - len(line.lstrip()) + 1)
                if text.startswith("\\#"):
                    text, start = text[1:], start.shifted(1)
                try:
                    entry = parse(text)
                except TemplateError as error:
                    raise start.shifted(error.at).error(str(error)) from None
                self.check(entry, start.shifted, (*chain, name))
                entries.append(entry)
        if not entries:
            raise where.error(f"{path} holds no entries")
        self._entries[name] = tuple(entries)

    def _path(self, name: str, where: Where) -> Path:
        """The file of a wildcard, which lies in the folder, links followed."""
        if self._folder is None:
            raise where.error(
                f"__{name}__ needs a folder of wildcard files (--wildcards FOLDER); write \\__ for two underscores"
            )
        if "*" in name:
            raise where.error(f"__{name}__: patterns are not read; name one file")
        parts = name.split("/")
        if any(part.strip(". ") == "" or part.startswith("~") or "\\" in part or ":" in part for part in parts):
            raise where.error(f"__{name}__: expected the name of a file in {self._folder}, without its .txt")
        path = self._folder.joinpath(*parts[:-1], parts[-1] + ".txt")
        try:
            if not path.resolve(strict=True).is_relative_to(self._folder.resolve()):
                raise where.error(f"__{name}__: {path} leads out of the folder of wildcards")
            if not path.is_file():
                raise where.error(f"__{name}__: {path} is not a file")
            if path.stat().st_size > MAX_FILE:
                raise where.error(f"__{name}__: {path} is larger than {MAX_FILE >> 20} MiB")
            with path.open("rb"):
                return path
        except FileNotFoundError:
            raise self._missing(name, path, where) from None
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise where.error(
                f"__{name}__: {path} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None

    def _missing(self, name: str, path: Path, where: Where) -> PromptListError:
        assert self._folder is not None
        names: list[str] = []
        for folder, folders, files in os.walk(self._folder):
            folders.sort()
            inside = Path(folder).relative_to(self._folder)
            names += [(inside / file[:-4]).as_posix() for file in sorted(files) if file.endswith(".txt")]
            if len(names) > _LISTED:
                break
        if not names:
            return where.error(f"__{name}__: no file {path}; there are no wildcard files in {self._folder}")
        return where.error(f"__{name}__: no file {path}.{did_you_mean(name, names)}")

"""From a row of a list to its items: defaults, sweeps, alternatives and wildcards, seeds.

Nothing depends on when or where it is done: the same list with the same options gives the same items, so that
a list which is submitted again names the same jobs. What would be left to chance is taken from SHA-256 of
what was asked for:

* A seed that nobody gave comes from the fields that decide the pixels, and from how many equal rows came
  before; two equal lines give two pictures. Fields that are swept do not count, so that the points of a sweep
  share the seed and can be compared.
* A draw comes from `random.Random`, seeded by the prompt's text, how many equal rows came before, and the
  seed, if given.

To count equal rows, 16 bytes of digest are kept for each (some 100 MB for a million).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from renderkiln.schema import RenderSpec
from renderkiln.schema.errors import InvalidSpecError

from .fields import PROMPT_FIELDS, check, check_text
from .model import MAX_JOBS_PER_PROMPT, Item, ListOptions, Row, Where
from .sweeps import points, size
from .templates import Template, TemplateError, is_plain, parse
from .wildcards import Wildcards

_DEFAULTS = {name: field.default for name, field in RenderSpec.model_fields.items()}


class Seen:
    """How often each thing came before, by digest."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}

    def count(self, key: bytes) -> int:
        """How often `key` came before this time."""
        before = self._counts.get(key, 0)
        self._counts[key] = before + 1
        return before


class _Row:
    """The numbers that the sweep points of one row share."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._numbers: dict[tuple[bytes, int], int] = {}

    def number(self, key: bytes, nth: int = 0) -> int:
        """The occurrence number of the nth `key` of a point of this row."""
        if (key, nth) not in self._numbers:
            self._numbers[key, nth] = self._seen.count(key)
        return self._numbers[key, nth]


class Expander:
    """Makes items from rows; the wildcard files it has read stay as they were."""

    def __init__(self, options: ListOptions, folder: Path, random_key: bytes | None) -> None:
        self._options = options
        self._folder = folder
        self._key = random_key
        self._wildcards = Wildcards(options.wildcards)
        self._swept = frozenset(sweep.field for sweep in options.sweeps)
        self._defaults: dict[str, Any] = {
            name: (check_text if name in PROMPT_FIELDS else check)(name, value)
            for name, value in options.defaults.items()
        }

    def items(self, row: Row, seen: Seen) -> Iterator[Item]:
        """The items of a row. Raises PromptListError."""
        fields = {**self._defaults, **row.fields}
        if "labels" in self._defaults and "labels" in row.fields:
            fields["labels"] = {**self._defaults["labels"], **row.fields["labels"]}
        outside = frozenset(name for name in fields if name not in row.fields) | self._swept
        here = _Row(seen)
        for point in points(self._options.sweeps):
            for item in self._expanded({**fields, **point}, row, outside, here):
                yield Item(item, row.where, self._folder, outside, row.locate)

    def _expanded(
        self, fields: dict[str, Any], row: Row, outside: frozenset[str], here: _Row
    ) -> Iterator[dict[str, Any]]:
        nths: dict[bytes, int] = {}
        for texts in self._texts(fields, row, outside, here):
            item = {**fields, **texts}
            if "seed" not in item:
                key = _digest(self._pixels(item))
                nth = nths[key] = nths.get(key, -1) + 1
                item["seed"] = self._seed(key, here.number(key, nth))
            yield item

    def _pixels(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """What decides the pixels, besides the seed and what is swept; defaults are left out."""
        return {
            name: value
            for name, value in item.items()
            if name in _DEFAULTS and name not in self._swept and value != _DEFAULTS[name]
        }

    def _seed(self, key: bytes, number: int) -> int:
        mixed = hashlib.sha256(b"seed" + (self._key or b"") + key + number.to_bytes(8, "big"))
        return int.from_bytes(mixed.digest()[:4], "big")

    def _texts(
        self, fields: Mapping[str, Any], row: Row, outside: frozenset[str], here: _Row
    ) -> Iterator[dict[str, str]]:
        """The prompts that the prompt fields become: one of each, or every combination."""
        texts = {name: fields[name] for name in PROMPT_FIELDS if name in fields}
        if not self._options.expand or all(is_plain(text) for text in texts.values()):
            yield self._checked(texts, row, outside)
            return
        templates = {name: self._template(name, text, row, outside) for name, text in texts.items()}
        if not self._options.combinations:
            rng = self._rng(texts, fields.get("seed"), here)
            drawn = {}
            for name, template in templates.items():
                with self._said_at(name, row, outside):
                    drawn[name] = self._wildcards.draw(template, rng)
            yield self._checked(drawn, row, outside)
            return
        counts = {name: self._wildcards.count(template) for name, template in templates.items()}
        total = size(self._options.sweeps)
        for count in counts.values():
            total *= count
        if total > MAX_JOBS_PER_PROMPT:
            raise row.where.error(f"all combinations are more than {MAX_JOBS_PER_PROMPT:,} jobs of this prompt")
        for index in range(total // size(self._options.sweeps)):
            made, rest = {}, index
            for name in reversed(tuple(templates)):
                rest, within = divmod(rest, counts[name])
                with self._said_at(name, row, outside):
                    made[name] = self._wildcards.nth(templates[name], within)
            yield self._checked(made, row, outside)

    def _template(self, name: str, text: str, row: Row, outside: frozenset[str]) -> Template:
        try:
            template = parse(text)
        except TemplateError as error:
            message = f"{error} (character {error.at + 1} of {name})"
            raise self._at(name, row, outside, error.at).error(message) from None
        self._wildcards.check(template, lambda offset: self._at(name, row, outside, offset))
        return template

    def _rng(self, texts: Mapping[str, str], seed: int | None, here: _Row) -> random.Random:
        key = _digest({**texts, "seed": seed})
        number = here.number(key).to_bytes(8, "big")
        return random.Random(hashlib.sha256(b"draw" + (self._key or b"") + key + number).digest())

    def _checked(self, texts: Mapping[str, str], row: Row, outside: frozenset[str]) -> dict[str, str]:
        for name, text in texts.items():
            with self._said_at(name, row, outside):
                check(name, text)
        return dict(texts)

    @contextmanager
    def _said_at(self, name: str, row: Row, outside: frozenset[str]) -> Iterator[None]:
        try:
            yield
        except (TemplateError, InvalidSpecError) as error:
            raise self._at(name, row, outside, 0).error(str(error)) from None

    def _at(self, name: str, row: Row, outside: frozenset[str], offset: int) -> Where:
        return row.where if name in outside else row.locate(name, offset)


def _digest(value: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:16]

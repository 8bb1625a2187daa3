"""Reads `.yaml` lists: a list of prompts or mappings, or a mapping with `defaults:` and `prompts:`.

The parser's events are read one by one; no YAML value is ever built, so that tags make no objects and aliases
cannot multiply. The schema says what each field's text means: `seed: 012` is 12, a prompt of `no` is the
word.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from renderkiln.schema.errors import InvalidSpecError, did_you_mean

from .fields import KNOWN, PROMPT_FIELDS, check, check_text, shorten
from .model import Row, Where
from .source import Source, whole

if TYPE_CHECKING:
    from yaml.events import Event, ScalarEvent

MAX_YAML = 64 << 20
#: What an anchor may name: the text of a scalar, or the fields of a mapping.
_Fields = dict[str, tuple[Any, Where]]
_NULLS = ("", "~", "null", "Null", "NULL")
_SCALAR_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null"))


def read_yaml(source: Source) -> Iterator[Row]:
    """The rows of a `.yaml` list, whose text is read as a whole, 64 MiB at most. Raises PromptListError."""
    with source.open() as stream:
        text = whole(stream, source.name, MAX_YAML, "a list that long is better a .jsonl, read line by line")
    yield from _Reader(text, source.name).rows()


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        import yaml

        self._yaml = yaml
        self._name = name
        self._text = text
        self._anchors: dict[str, Any] = {}
        self._events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def rows(self) -> Iterator[Row]:
        y = self._yaml
        self._next()  # the stream starts
        if isinstance(self._next(), y.StreamEndEvent):
            return
        event = self._next()
        if isinstance(event, y.SequenceStartEvent):
            yield from self._items({})
        elif isinstance(event, y.MappingStartEvent):
            yield from self._parts()
        elif not (isinstance(event, y.ScalarEvent) and not event.value):
            raise self._at(event).error("expected a list (lines that start with '- '), or 'defaults:' and 'prompts:'")
        self._next()  # the document ends
        event = self._next()
        if not isinstance(event, y.StreamEndEvent):
            raise self._at(event).error("a second document; expected one")

    def _parts(self) -> Iterator[Row]:
        """The rows of a mapping with `defaults:` and `prompts:`."""
        y = self._yaml
        defaults: _Fields = {}
        seen: list[str] = []
        while not isinstance(event := self._next(), y.MappingEndEvent):
            where = self._at(event)
            name = event.value if isinstance(event, y.ScalarEvent) else ""
            if name in seen:
                raise where.error(f"{name!r} is there twice")
            if name == "defaults" and not seen:
                defaults = self._mapping(self._next())
            elif name == "defaults":
                raise where.error("write 'defaults:' before 'prompts:'")
            elif name == "prompts":
                start = self._next()
                if not isinstance(start, y.SequenceStartEvent):
                    raise self._at(start).error("expected a list under 'prompts:' (lines that start with '- ')")
                yield from self._items(defaults)
            elif name in KNOWN:
                raise where.error(
                    f"expected 'defaults' or 'prompts', found {name!r}; is there a '- ' missing before it?"
                )
            else:
                hint = did_you_mean(name[:60], ("defaults", "prompts"))
                raise where.error(f"expected 'defaults' or 'prompts', found {shorten(name)}.{hint}")
            seen.append(name)

    def _items(self, defaults: _Fields) -> Iterator[Row]:
        y = self._yaml
        while not isinstance(event := self._next(), y.SequenceEndEvent):
            where = self._at(event)
            found = self._value(event)
            if found is None:
                raise where.error("an empty entry; expected a prompt or a mapping of fields")
            given = {"prompt": (found, where)} if isinstance(found, str) else found
            yield _row({**defaults, **given}, where)

    def _value(self, event: Event) -> str | _Fields | None:
        """A scalar's text (None for a null), or the fields of a mapping."""
        y = self._yaml
        if isinstance(event, y.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._at(event).error(f"nothing is anchored as &{event.anchor} before this")
            return self._anchors[event.anchor]  # type: ignore[no-any-return]
        if isinstance(event, y.ScalarEvent):
            value: Any = self._scalar(event)
        elif isinstance(event, y.MappingStartEvent):
            value = self._mapping(event)
        else:
            raise self._at(event).error("a list inside a list; expected a prompt or a mapping of fields")
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value  # type: ignore[no-any-return]

    def _mapping(self, event: Event) -> _Fields:
        y = self._yaml
        if isinstance(event, y.AliasEvent):
            found = self._value(event)
            if isinstance(found, dict):
                return found
        if not isinstance(event, y.MappingStartEvent):
            raise self._at(event).error("expected a mapping of fields, such as 'guidance_scale: 7'")
        fields: _Fields = {}
        for name, where in self._keys(fields):
            inner = self._next()
            if name == "labels" and isinstance(inner, y.MappingStartEvent):
                labels: dict[str, Any] = {}
                for label, _ in self._keys(labels):
                    labels[label] = self._text_of(self._next(), f"label {label!r}")
                value: Any = labels
            elif name == "controlnets" and isinstance(inner, y.SequenceStartEvent):
                value = list(self._controlnets())
            else:
                value = self._text_of(inner, name)
            try:
                fields[name] = ((check_text if name in PROMPT_FIELDS else check)(name, value), where)
            except InvalidSpecError as error:
                hint = "" if name in KNOWN or " " not in name else " A prompt that holds ': ' goes into quotes."
                raise where.error(f"{error}{hint}") from None
        if event.anchor is not None:
            self._anchors[event.anchor] = fields
        return fields

    def _controlnets(self) -> Iterator[Any]:
        """The entries of a list of ControlNets: texts, and mappings of texts."""
        y = self._yaml
        while not isinstance(event := self._next(), y.SequenceEndEvent):
            if isinstance(event, y.MappingStartEvent):
                if event.anchor is not None:
                    raise self._at(event).error("a ControlNet cannot be anchored; put what is shared under 'defaults:'")
                entry: dict[str, Any] = {}
                for name, _ in self._keys(entry):
                    entry[name] = self._text_of(self._next(), f"controlnets: {name}")
                yield entry
            else:
                yield self._text_of(event, "an entry of controlnets")

    def _keys(self, so_far: dict[str, Any]) -> Iterator[tuple[str, Where]]:
        y = self._yaml
        while not isinstance(event := self._next(), y.MappingEndEvent):
            where = self._at(event)
            if not isinstance(event, y.ScalarEvent):
                raise where.error("expected the name of a field")
            if event.value == "<<":
                raise where.error("merge keys (<<) are not read; put what entries share under 'defaults:'")
            if event.value in so_far:
                raise where.error(f"{shorten(event.value)} is there twice")
            yield event.value, where

    def _text_of(self, event: Event, name: str) -> str | None:
        y = self._yaml
        if isinstance(event, (y.SequenceStartEvent, y.MappingStartEvent)):
            raise self._at(event).error(f"{name} takes one value; for several, use a sweep or several entries")
        found = self._value(event)
        if isinstance(found, dict):
            raise self._at(event).error(f"{name} takes one value, not the mapping that this alias stands for")
        return found

    def _scalar(self, event: ScalarEvent) -> str | None:
        if event.tag not in (None, "!", *_SCALAR_TAGS):
            raise self._at(event).error(f"the tag {shorten(event.tag)} is not read; expected plain text")
        plain = event.implicit[0] or event.tag == _SCALAR_TAGS[-1]
        return None if plain and event.value in _NULLS else event.value

    def _next(self) -> Event:
        try:
            return next(self._events)
        except self._yaml.reader.ReaderError as error:
            before = self._text[: error.position] if isinstance(error.position, int) else ""
            bad = self._yaml.reader.Reader.NON_PRINTABLE.search(self._text)
            at = bad.start() if bad else len(before)
            place = Where(self._name, self._text.count("\n", 0, at) + 1, at - self._text.rfind("\n", 0, at))
            raise place.error(f"{error.reason}; expected printable text") from None
        except self._yaml.YAMLError as error:
            mark: Any = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            place = Where(self._name, mark.line + 1, mark.column + 1) if mark else Where(self._name)
            raise place.error(f"not YAML: {getattr(error, 'problem', None) or error}") from None
        except RecursionError:
            raise Where(self._name).error("nested too deeply; expected a list of prompts or mappings") from None

    def _at(self, event: Event) -> Where:
        mark: Any = event.start_mark  # every event of a parser has one
        return Where(self._name, mark.line + 1, mark.column + 1)


def _row(fields: _Fields, where: Where) -> Row:
    return Row(
        {name: value for name, (value, _) in fields.items()},
        where,
        lambda name, _offset: fields[name][1] if name in fields else where,
    )

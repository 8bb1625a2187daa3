"""Sweeps: `guidance_scale=5,7.5,10`, `seed=1..8`, `scheduler="euler a",ddim`.

A sweep renders each prompt once for each of its values; several sweeps make every combination, the first one
changing slowest. Values are separated by commas; one that holds a comma, or starts or ends with a space, goes
into quotes. For a number `a..b` counts from a to b (both included), `a..b..step` in steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import product
from typing import Any

from renderkiln.schema.errors import InvalidSpecError, PromptListError

from .fields import KNOWN, PROMPT_FIELDS, check, check_text, unknown

MAX_VALUES = 1_000_000

_INTEGERS = {"seed", "num_inference_steps", "width", "height", "clip_skip", "num_images", "max_attempts"}
_NUMBERS = {*_INTEGERS, "guidance_scale", "strength", "timeout"}
_RANGE = re.compile(r"\s*(?P<first>.*?)\.\.(?P<last>.*?)(?:\.\.(?P<step>.*))?")


@dataclass(frozen=True)
class Sweep:
    """A field and the values that it takes in turn."""

    field: str
    values: tuple[Any, ...]


def size(sweeps: Sequence[Sweep]) -> int:
    """How many jobs the sweeps make of one prompt."""
    return math.prod(len(sweep.values) for sweep in sweeps)


def points(sweeps: Sequence[Sweep]) -> Iterator[dict[str, Any]]:
    """Every combination of the sweeps' values; one empty one if there are no sweeps."""
    names = [sweep.field for sweep in sweeps]
    for values in product(*(sweep.values for sweep in sweeps)):
        yield dict(zip(names, values, strict=True))


def parse_sweep(text: str) -> Sweep:
    """Reads a sweep.

    Raises:
        PromptListError: the field is unknown, or a value is not one of its; the column counts from the
        field's name.
    """
    name, equals, rest = text.partition("=")
    field = name.strip().replace("-", "_")
    if not equals:
        raise _error(text, 0, "expected FIELD=VALUE,VALUE… or FIELD=FIRST..LAST, such as seed=1..8")
    if field not in KNOWN:
        raise _error(text, 0, str(unknown(field)))
    if field == "labels":
        raise _error(text, 0, "labels cannot be swept")
    values: list[Any] = []
    seen: set[Any] = set()
    for at, value, quoted in _split(text, len(name) + 1):
        found = _range(text, at, field, value) if field in _NUMBERS and ".." in value and not quoted else [value]
        for each in found:
            checked = _check(text, at, field, each)
            if checked in seen:
                raise _error(text, at, f"{checked!r} is given twice")
            seen.add(checked)
            values.append(checked)
            if len(values) > MAX_VALUES:
                raise _error(text, at, f"more than {MAX_VALUES:,} values")
    if not rest.strip():
        raise _error(text, len(name) + 1, f"expected at least one value for {field}")
    return Sweep(field, tuple(values))


def _check(text: str, at: int, field: str, value: Any) -> Any:
    if value == "" and field not in PROMPT_FIELDS:
        raise _error(text, at, f"expected a value for {field}, found nothing; is there a comma too many?")
    try:
        return (check_text if field in PROMPT_FIELDS else check)(field, value)
    except InvalidSpecError as error:
        raise _error(text, at, str(error)) from None


def _split(text: str, start: int) -> Iterator[tuple[int, str, bool]]:
    """The values from `start` on: where each begins, its text, and whether it was quoted."""
    at = start
    while True:
        while text[at : at + 1].isspace():
            at += 1
        begin = at
        if text[at : at + 1] in ("'", '"') and text[at : at + 1]:
            value, at = _quoted(text, at)
            yield begin, value, True
        else:
            at = (text + ",").index(",", at)
            yield begin, text[begin:at].rstrip(), False
        if at >= len(text):
            return
        at += 1


def _quoted(text: str, at: int) -> tuple[str, int]:
    """A quoted value, and where it ends. A quote inside is written twice, or after a backslash."""
    quote, begin, said = text[at], at, []
    at += 1
    while at < len(text):
        if text[at] == "\\" and text[at + 1 : at + 2] in (quote, "\\"):
            said.append(text[at + 1])
            at += 2
        elif text[at] != quote:
            said.append(text[at])
            at += 1
        elif text[at + 1 : at + 2] == quote:
            said.append(quote)
            at += 2
        else:
            rest = text[at + 1 :]
            at += 1 + len(rest) - len(rest.lstrip())
            if at < len(text) and text[at] != ",":
                raise _error(text, at, "expected a comma after the closing quote")
            return "".join(said), at
    raise _error(text, begin, f"the quote {quote} is not closed")


def _range(text: str, at: int, field: str, value: str) -> Iterator[int | float]:
    match = _RANGE.fullmatch(value)
    assert match is not None  # the caller saw the two dots
    numbers = {}
    for part, default in (("first", None), ("last", None), ("step", "1")):
        said = match[part] if match[part] is not None else default
        column = at + (match.start(part) if match[part] is not None else 0)
        try:
            number = Decimal((said or "").strip())
            exponent = number.as_tuple().exponent
            usable = isinstance(exponent, int) and exponent >= -9 and abs(number) < 10**12
        except InvalidOperation:
            usable = False
        if not usable:
            raise _error(text, column, f"expected a range of numbers such as 1..8 or 1..9..2, found {said!r}")
        if field in _INTEGERS and number != int(number):
            raise _error(text, column, f"{field} takes whole numbers, not {said}")
        numbers[part] = (number, column)
    (first, _), (last, last_at), (step, step_at) = numbers["first"], numbers["last"], numbers["step"]
    if step <= 0:
        raise _error(text, step_at, f"the step of a range must be more than 0, not {step}")
    if last < first:
        raise _error(text, last_at, f"the range ends at {last}, before it starts ({first})")
    if (last - first) / step >= MAX_VALUES:
        raise _error(text, at, f"the range has more than {MAX_VALUES:,} values")
    for k in range(int((last - first) / step) + 1):
        here = first + k * step
        yield int(here) if field in _INTEGERS else float(here)


def _error(text: str, at: int, message: str) -> PromptListError:
    shown = text if len(text) <= 80 else text[:79] + "…"
    return PromptListError(message, source=f"--sweep {shown!r}", column=at + 1)

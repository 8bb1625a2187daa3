"""What a recipe can be made for, as people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from renderkiln.schema.errors import BadInputError

from .recipe import UNTOUCHED, WIDTHS

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(x|bits?|[KMG]i?B|B)", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """What a recipe is made for."""

    #: `bytes` of the whole package, `bits` of the average weight, `part` of the package as it is, or `psnr` in dB.
    kind: Literal["bytes", "bits", "part", "psnr"]
    value: float


def parse_size(text: str) -> Target:
    """`0.5x`, `900MB` or `4.2bits`. Raises BadInputError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadInputError(
            f"{text!r} is no size; say 0.5x (of the package), 900MB, or 4.2bits (of the average weight)"
        )
    value, unit = float(match[1]), match[2].lower()
    if unit == "x":
        return Target("part", value)
    if unit.startswith("bit"):
        return Target("bits", value)
    factor = next(factor for name, factor in _UNITS.items() if name.lower() == unit)
    return Target("bytes", value * factor)


def parse_widths(text: str) -> tuple[int, ...]:
    """`2,4,6,8,16`; 16 lets layers stay as they are. Raises BadInputError."""
    found = []
    for part in text.split(","):
        if not part.strip().isdecimal() or int(part) not in (*WIDTHS, UNTOUCHED):
            known = ", ".join(map(str, WIDTHS))
            raise BadInputError(
                f"{part.strip()!r} is no number of bits; there are {known}, and {UNTOUCHED} for as it is"
            )
        found.append(int(part))
    return tuple(sorted(set(found)))

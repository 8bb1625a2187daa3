"""In which forms a model can be rendered here. Loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from renderkiln.schema.errors import BadInputError, did_you_mean

from ..models.choosing import Form, check_unit
from ..models.layout import COREAI, VARIANTS, variants
from ..models.machine import advice
from ..runtimes.apple import system
from ..runtimes.base import ComputeUnit
from ..runtimes.coreai.system import on_all_units, why_not
from .records import Candidate

#: `cpu_only` is for those who ask, and `all` has never beaten the better of these two.
_ON_A_MAC: tuple[ComputeUnit, ...] = ("cpu_and_ne", "cpu_and_gpu")
_ELSEWHERE: tuple[ComputeUnit, ...] = ("reference",)


def converted_candidates(
    model: str, folder: Path, units: Iterable[str] = (), only: Iterable[str] = ()
) -> list[Candidate]:
    """The converted forms of a model that are to be measured, the one that suits this machine first.

    Args:
        units: compute units; empty: those that this system has and that are worth a try.
        only: variants; empty: all that the model has.

    Raises:
        BadInputError: the model has no converted stages, or not such a variant.
        SettingsError: a unit is unknown, or not on this system.
        ModelLoadError: a manifest is not one of ours.
    """
    there = variants(folder)
    if not there:
        raise BadInputError(
            f"{model} holds no converted stages, so that there is nothing to choose from; "
            "`renderkiln convert` makes some, and `renderkiln bench model` measures any model"
        )
    wanted = tuple(only) or tuple(name for name in VARIANTS if name in there and (name != COREAI or why_not() is None))
    for name in wanted:
        if name not in there:
            raise BadInputError(
                f"{model} has no variant {name!r}; it has {', '.join(there)}.{did_you_mean(name, there)}"
            )
    units = tuple(units)
    for unit in units:
        if unit == "auto":
            raise BadInputError("auto is no compute unit to measure; name some, or leave --units out")
        check_unit(unit)
    pairs = dict.fromkeys((variant, unit) for variant in wanted for unit in units or _units(variant))
    suits = advice()
    # The best guess first, so that whoever stops early has measured that.
    ordered = sorted(pairs, key=lambda pair: pair != (suits.variant, suits.compute_unit))
    return [Candidate("coreai" if variant == COREAI else "coreml", variant, unit) for variant, unit in ordered]


def _units(variant: str) -> tuple[ComputeUnit, ...]:
    """The units of this system that are worth a try."""
    return _ON_A_MAC if (on_all_units() if variant == COREAI else system.on_macos()) else _ELSEWHERE


def candidate_of(form: Form | None) -> Candidate:
    """What a worker would render with, as something to measure. `form`: None for torch."""
    return Candidate("torch") if form is None else Candidate(form.engine, form.variant, form.unit)


def in_our_words(names: str | None, known: Sequence[str] = ()) -> list[str]:
    """`a,b` as a list, in small letters, with dashes where `known` has them: Apple's tools write capitals and `_`."""
    found = []
    for name in (names or "").split(","):
        word = name.strip().casefold()
        if word:
            found.append(word.replace("_", "-") if word.replace("_", "-") in known else word)
    return found

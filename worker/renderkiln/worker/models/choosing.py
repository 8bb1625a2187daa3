"""Which of a model's forms is rendered with on this machine, and on which compute unit. Loads nothing."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast, get_args

from renderkiln.home.models import has_torch_weights
from renderkiln.schema.errors import ModelLoadError, SettingsError

from ..runtimes.base import ComputeUnit
from .layout import VARIANTS, variants
from .machine import advice

_IS_MAC = platform.system() == "Darwin"


@dataclass(frozen=True)
class Wishes:
    """What the settings say."""

    #: auto, torch or coreml.
    engine: str = "auto"
    #: auto, or a `ComputeUnit`.
    compute_unit: str = "auto"
    #: Of a model that has several: auto, original, split-einsum or split-einsum-v2.
    variant: str = "auto"


class Form(NamedTuple):
    """The form in which a converted model is rendered."""

    variant: str
    #: Of its manifest and packages.
    folder: Path
    unit: ComputeUnit


def check_unit(name: str) -> None:
    """Raises SettingsError if a compute unit is unknown, or this system does not have it; `auto` is always there."""
    if name not in ("auto", *get_args(ComputeUnit)):
        raise SettingsError(f"no compute unit {name!r}; use auto or one of: {', '.join(get_args(ComputeUnit))}")
    if name not in ("auto", "reference") and not _IS_MAC:
        raise SettingsError(f"compute unit {name} needs macOS; elsewhere there is `reference` alone")


def pick_form(folder: Path, wishes: Wishes, tuned: tuple[str, str] | None = None) -> Form | None:
    """The form of a model that this machine renders with; None where torch renders it.

    Args:
        tuned: the variant and the compute unit that were measured to be best here; wishes go first.

    Raises:
        ModelLoadError: the engine or the variant that was asked for has nothing in this model.
        SettingsError: see `check_unit`.
    """
    check_unit(wishes.compute_unit)
    there = variants(folder)
    if wishes.engine == "torch" or (wishes.engine == "auto" and not _prefers_converted(folder, bool(there))):
        return None
    if not there:
        raise ModelLoadError(
            f"{folder} holds no converted stages, which the coreml engine needs; make them with "
            "`renderkiln convert`, or render it with --engine torch"
        )
    if wishes.variant not in ("auto", *there):
        raise ModelLoadError(f"{folder} has no variant {wishes.variant}; it has {', '.join(sorted(there))}")
    measured, measured_unit = tuned or (None, None)
    wanted = (measured, advice().variant, *VARIANTS) if wishes.variant == "auto" else (wishes.variant,)
    variant = next(name for name in wanted if name in there)
    if wishes.compute_unit == "auto" and variant == measured and (measured_unit == "reference") != _IS_MAC:
        return Form(variant, there[variant], cast("ComputeUnit", measured_unit))
    return Form(variant, there[variant], _unit(wishes.compute_unit, variant))


def is_converted_only(folder: Path) -> bool:
    """Whether a model has converted stages, and no weights for torch. Raises ModelLoadError."""
    return bool(variants(folder)) and not has_torch_weights(folder)


def _prefers_converted(folder: Path, is_converted: bool) -> bool:
    """What `auto` means: Core ML where it is at home, or where there is nothing else."""
    return is_converted and (_IS_MAC or is_converted_only(folder))


def _unit(name: str, variant: str) -> ComputeUnit:
    """The unit that suits a variant, unless one was named: the wrong one can take minutes to load, or for ever."""
    if name != "auto":
        return cast("ComputeUnit", name)
    if not _IS_MAC:
        return "reference"
    return "cpu_and_gpu" if variant == "original" else "cpu_and_ne"

"""Which of a model's forms is rendered with on this machine, and on which compute unit. Loads nothing."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from renderkiln.schema.errors import ModelLoadError, SettingsError

from ..runtimes.opening import ComputeUnit
from .layout import variants


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


def pick_unit(wishes: Wishes) -> ComputeUnit:
    """The compute unit. Raises SettingsError if it is unknown, or this system does not have it."""
    unit = wishes.compute_unit
    if unit == "auto":
        return "cpu_and_gpu" if _IS_MAC else "reference"
    if unit not in get_args(ComputeUnit):
        raise SettingsError(f"no compute unit {unit!r}; use auto or one of: {', '.join(get_args(ComputeUnit))}")
    if unit != "reference" and not _IS_MAC:
        raise SettingsError(f"compute unit {unit} needs macOS; elsewhere there is `reference` alone")
    return cast(ComputeUnit, unit)


def converted_folder(folder: Path, wishes: Wishes) -> Path | None:
    """The folder whose manifest a model is rendered with; None where torch renders it.

    Raises:
        ModelLoadError: the engine or the variant that was asked for has nothing in this model.
    """
    there = variants(folder)
    if wishes.engine == "torch" or (wishes.engine == "auto" and not _prefers_converted(folder, bool(there))):
        return None
    if not there:
        raise ModelLoadError(
            f"{folder} holds no converted stages, which the coreml engine needs; make them with "
            f"`renderkiln convert`, or render it with --engine torch"
        )
    if wishes.variant != "auto":
        if wishes.variant not in there:
            raise ModelLoadError(f"{folder} has no variant {wishes.variant}; it has {', '.join(sorted(there))}")
        return there[wishes.variant]
    return there.get("original") or there[min(there)]


def _prefers_converted(folder: Path, is_converted: bool) -> bool:
    """What `auto` means: Core ML where it is at home, or where there is nothing else."""
    return is_converted and (_IS_MAC or not any((folder / "unet").glob("*.safetensors")))

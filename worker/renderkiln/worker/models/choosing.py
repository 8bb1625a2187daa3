"""Which of a model's forms is rendered with on this machine, and on which compute unit. Loads nothing."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from renderkiln.home.models import has_torch_weights
from renderkiln.schema.errors import ModelLoadError, SettingsError

from ..runtimes.base import ComputeUnit
from ..runtimes.coreai.system import on_all_units, why_not
from .layout import COREAI, COREML_VARIANTS, variants
from .machine import advice

_IS_MAC = platform.system() == "Darwin"
ConvertedEngine = Literal["coreml", "coreai"]
_NAMES: Mapping[ConvertedEngine, str] = {"coreml": "Core ML", "coreai": "Core AI"}


@dataclass(frozen=True)
class Wishes:
    """What the settings say."""

    #: auto, torch, coreml or coreai.
    engine: str = "auto"
    #: auto, or a `ComputeUnit`.
    compute_unit: str = "auto"
    #: Of a model that has several for Core ML: auto, original, split-einsum or split-einsum-v2.
    variant: str = "auto"


class Form(NamedTuple):
    """The form in which a converted model is rendered."""

    variant: str
    #: Of its manifest and packages.
    folder: Path
    unit: ComputeUnit
    engine: ConvertedEngine = "coreml"


class Choice(NamedTuple):
    """What renders a model here, and why."""

    #: None: torch.
    form: Form | None
    #: The reason, as the rest of a sentence that says which engine it is.
    why: str


@dataclass(frozen=True)
class System:
    """What the choice asks of a machine."""

    is_mac: bool
    #: Why Core AI is not here, as the end of a sentence; None: it is.
    no_coreai: str | None
    #: Whether Core AI runs on the GPU and the Neural Engine; otherwise there is an interpreter.
    coreai_on_all_units: bool


def check_unit(name: str) -> None:
    """Raises SettingsError if a compute unit is unknown, or this system does not have it; `auto` is always there."""
    if name not in ("auto", *get_args(ComputeUnit)):
        raise SettingsError(f"no compute unit {name!r}; use auto or one of: {', '.join(get_args(ComputeUnit))}")
    if name not in ("auto", "reference") and not _IS_MAC:
        raise SettingsError(f"compute unit {name} needs macOS; elsewhere there is `reference` alone")


def pick_form(folder: Path, wishes: Wishes, tuned: tuple[str, str] | None = None) -> Form | None:
    """The form of a model that this machine renders with; None where torch renders it. As `choose`."""
    return choose(folder, wishes, tuned).form


def choose(folder: Path, wishes: Wishes, tuned: tuple[str, str] | None = None, system: System | None = None) -> Choice:
    """What renders a model on this machine: the form that was converted, or torch.

    Args:
        tuned: the variant and the compute unit that were measured to be best here; wishes go first.
        system: this one, unless told.

    Raises:
        ModelLoadError: the engine or the variant that was asked for has nothing in this model, or is not here.
        SettingsError: see `check_unit`.
    """
    check_unit(wishes.compute_unit)
    system = system or this_system()
    there = variants(folder)
    engine, why = _engine(folder, wishes, there, tuned, system)
    if engine is None:
        return Choice(None, why)
    if engine == "coreai":
        if COREAI not in there:
            raise ModelLoadError(_nothing_for(folder, engine))
        if system.no_coreai is not None:
            raise ModelLoadError(f"{folder} is converted to Core AI, which {system.no_coreai}")
        return Choice(Form(COREAI, there[COREAI], _coreai_unit(wishes, tuned, system), "coreai"), why)
    of_coreml = {name: path for name, path in there.items() if name != COREAI}
    if not of_coreml:
        raise ModelLoadError(_nothing_for(folder, engine))
    if wishes.variant not in ("auto", *of_coreml):
        raise ModelLoadError(f"{folder} has no variant {wishes.variant}; it has {', '.join(sorted(of_coreml))}")
    measured, measured_unit = tuned or (None, None)
    wanted = (measured, advice().variant, *COREML_VARIANTS) if wishes.variant == "auto" else (wishes.variant,)
    variant = next(name for name in wanted if name in of_coreml)
    if wishes.compute_unit == "auto" and variant == measured and (measured_unit == "reference") != system.is_mac:
        return Choice(Form(variant, there[variant], cast("ComputeUnit", measured_unit)), why)
    return Choice(Form(variant, there[variant], _coreml_unit(wishes.compute_unit, variant, system)), why)


def this_system() -> System:
    """What this machine has."""
    return System(_IS_MAC, why_not(), on_all_units())


def is_converted_only(folder: Path) -> bool:
    """Whether a model has converted stages, and no weights for torch. Raises ModelLoadError."""
    return bool(variants(folder)) and not has_torch_weights(folder)


def engine_of(folder: Path) -> ConvertedEngine:
    """The engine of a folder with one manifest, that of converted stages. Raises ModelLoadError."""
    return "coreai" if COREAI in variants(folder) else "coreml"


def _engine(
    folder: Path, wishes: Wishes, there: Collection[str], tuned: tuple[str, str] | None, system: System
) -> tuple[ConvertedEngine | None, str]:
    """The engine, None for torch, and why it is that one."""
    if wishes.engine != "auto":
        return None if wishes.engine == "torch" else cast("ConvertedEngine", wishes.engine), "as the settings say"
    has_coreml, has_coreai = any(name != COREAI for name in there), COREAI in there and system.no_coreai is None
    if has_coreml and wishes.variant not in ("auto", COREAI) and system.is_mac:
        return "coreml", "as the settings name a variant of it"
    if tuned is not None and tuned[0] in there and system.is_mac and (tuned[0] != COREAI or has_coreai):
        return "coreai" if tuned[0] == COREAI else "coreml", "as `renderkiln tune` measured"
    if has_coreai and system.coreai_on_all_units:
        return "coreai", "as the model is converted to it, and this macOS runs it on all units"
    if has_coreml and system.is_mac:
        return "coreml", "as the model is converted to it"
    if not there or has_torch_weights(folder):
        if not there:
            return None, "as the model is not converted"
        return None, "as this system has interpreters for converted models alone, and the model has weights"
    # What is left has no weights: whatever runs it will do, the faster one first.
    if has_coreml or COREAI not in there:
        return "coreml", "as the model has no weights for torch"
    return "coreai", "as the model has nothing else"


def _nothing_for(folder: Path, engine: ConvertedEngine) -> str:
    flag = " --format coreai" if engine == "coreai" else ""
    return (
        f"{folder} holds no stages that are converted to {_NAMES[engine]}, which the {engine} engine needs; make them "
        f"with `renderkiln convert{flag}`, or render it with --engine torch"
    )


def _coreml_unit(name: str, variant: str, system: System) -> ComputeUnit:
    """The unit that suits a variant, unless one was named: the wrong one can take minutes to load, or for ever."""
    if name != "auto":
        return cast("ComputeUnit", name)
    if not system.is_mac:
        return "reference"
    return "cpu_and_gpu" if variant == "original" else "cpu_and_ne"


def _coreai_unit(wishes: Wishes, tuned: tuple[str, str] | None, system: System) -> ComputeUnit:
    """As Apple's Swift pipeline, the GPU, unless another unit was named, or measured to be better."""
    if wishes.compute_unit != "auto":
        return cast("ComputeUnit", wishes.compute_unit)
    if not system.coreai_on_all_units:
        return "reference"
    if tuned is not None and tuned[0] == COREAI and tuned[1] != "reference":
        return cast("ComputeUnit", tuned[1])
    return "cpu_and_gpu"

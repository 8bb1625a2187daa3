"""All calls that we make to coremltools where it calls Core ML: compile, load, plan. Nothing else here imports it.

coremltools stands alone between us and the system, and has two ways to do each thing. `MLModel(package)` compiles to a
temporary folder and loads it from there, on all units that it may use: minutes and gigabytes for the Neural Engine's
compiler, whose result belongs to that folder's path and is lost with it. `compile_model` only compiles. So a package is
compiled by `compile_model` and loaded by `CompiledMLModel`, from a path that stays.

Neither lets other Python threads run while Core ML is at work.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import ModelLoadError

from ..base import TensorInfo
from ..mlpackage import model_proto, open_package
from .failures import compile_failure, load_failure
from .system import MACOS_WITH_HINTS, ComputeUnit, macos_version, on_macos

#: The macOS that the first version of each specification needs (coremltools' `_SPECIFICATION_VERSION_…`).
_NEEDS = {6: 12, 7: 13, 8: 14, 9: 15, 10: 26}
#: What every compiled model holds. Core ML ends the whole process where it is missing (apple/coremltools#2757).
_HEART = "coremldata.bin"


def coremltools() -> Any:
    """coremltools, imported without its remarks; takes seconds.

    Raises:
        ModelLoadError: it is not installed, or this is not macOS.
    """
    if not on_macos():
        raise ModelLoadError(
            "Core ML is part of macOS, and this is another system. Elsewhere models run on the reference runtime."
        )
    model_proto()
    import coremltools

    return coremltools


def compile_package(package: Path, target: Path) -> None:
    """Compiles a `.mlpackage` to the folder `target`, which does not exist yet and ends in `.mlmodelc`.

    Raises:
        ModelLoadError: Core ML refuses the package, or there is no room.
        OutOfMemoryError: memory ran out.
    """
    utils = coremltools().models.utils
    try:
        with _silent_output():
            made = utils.compile_model(str(package))
        try:
            shutil.move(made, target)
        finally:
            # It can be gigabytes, in the system's temporary folder, and nobody else removes it.
            shutil.rmtree(made, ignore_errors=True)
    except Exception as error:  # coremltools raises Exception itself
        raise compile_failure(error, package.name, _newer_macos(package)) from error


def load_compiled(path: Path, name: str, inputs: Iterable[TensorInfo], unit: ComputeUnit, function: str | None) -> Any:
    """A `CompiledMLModel` of a `.mlmodelc` folder.

    Args:
        name: of the package that it was compiled of, for people.
        inputs: what the model takes; the hints go by their shapes.
        function: where the model has several, which; needs macOS 15.

    Raises:
        ModelLoadError: it is no compiled model, or Core ML refuses it.
        OutOfMemoryError: memory ran out.
    """
    ct = coremltools()
    check_compiled(path)
    if function is not None and macos_version() < MACOS_WITH_HINTS:
        raise ModelLoadError(f"{name}: models of several functions need macOS 15; convert one for each size")
    try:
        return ct.models.CompiledMLModel(
            str(path),
            compute_units=ct.ComputeUnit[unit.upper()],
            function_name=function,
            optimization_hints=_hints(ct, inputs),
        )
    except Exception as error:
        raise load_failure(error, name, unit) from error


def load_plan(path: Path, unit: ComputeUnit) -> Any:
    """The `MLComputePlan` of a `.mlmodelc` folder.

    Raises:
        ModelLoadError: it is no compiled model, Core ML refuses it, or this macOS has no plans (14.4 does).
        OutOfMemoryError: memory ran out.
    """
    ct = coremltools()
    check_compiled(path)
    if macos_version() < (14, 4):
        raise ModelLoadError("which device runs which part of a model can be seen on macOS 14.4 and later")
    try:
        return ct.models.compute_plan.MLComputePlan.load_from_path(
            str(path), compute_units=ct.ComputeUnit[unit.upper()]
        )
    except Exception as error:
        raise load_failure(error, path.name, unit) from error


def check_compiled(path: Path) -> None:
    """Sees that a folder looks like a compiled model.

    Core ML takes what does not end in `.mlmodelc` for a package, and ends the process on a folder without its heart.

    Raises:
        ModelLoadError: it does not.
    """
    if path.suffix != ".mlmodelc":
        raise ModelLoadError(f"{path} is no compiled model: its name does not end in .mlmodelc")
    heart = path / _HEART
    if not heart.is_file() or heart.stat().st_size == 0:
        raise ModelLoadError(f"{path} is no compiled model, or is damaged: it has no {_HEART}")


def _hints(ct: Any, inputs: Iterable[TensorInfo]) -> dict[str, Any] | None:
    """What Core ML may assume, where it can be told: a UNet is loaded once and called thousands of times."""
    if macos_version() < MACOS_WITH_HINTS:
        return None
    hints = {"specializationStrategy": ct.SpecializationStrategy.FastPrediction}
    if all(len(info.shapes) == 1 for info in inputs):
        hints["reshapeFrequency"] = ct.ReshapeFrequency.Infrequent
    return hints


def _newer_macos(package: Path) -> str | None:
    """That a package is for a newer macOS than this, as a sentence; None where it is not, or cannot be read."""
    try:
        version = open_package(package).read_spec().specificationVersion
    except ModelLoadError:
        return None
    needed = _NEEDS.get(version, 0) if version <= max(_NEEDS) else max(_NEEDS.values())
    if macos_version() >= (needed,):
        return None
    here = ".".join(map(str, macos_version()))
    return f"It was made for macOS {needed} and this is macOS {here}: update, or convert for this one."


@contextmanager
def _silent_output() -> Iterator[None]:
    """No standard output within: Core ML's compiler writes there, where a command may be writing JSON.

    For the whole process, as it is not Python that writes. No other thread of Python's runs meanwhile.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    try:
        before = os.dup(1)
    except OSError:  # closed: nobody is disturbed
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 1)
        yield
    finally:
        os.dup2(before, 1)
        os.close(nothing)
        os.close(before)

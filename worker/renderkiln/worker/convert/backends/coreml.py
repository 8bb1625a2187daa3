"""Core ML: has coremltools turn a traced stage into a `.mlpackage`, with Apple's names and types. A `Backend`."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...runtimes.base import Runtime, TensorInfo
from ...runtimes.mlpackage import model_proto, open_package
from ...runtimes.reference import ReferenceRuntime
from ..compress.coremltools_quietly import checking_itself_less, quietly, temporary_files_in
from ..compress.layers import find_layers, read_graph
from ..compress.palettize import palettize
from ..compress.recipe_file import read_recipe
from ..plan import StagePlan
from . import Tell
from .failures import errors_of, reading_back
from .tensors import DESCRIPTIONS, RESIDUAL, example

model_proto()  # imports coremltools without its advice on standard error
import coremltools as ct  # noqa: E402


def write(stage: torch.nn.Module, plan: StagePlan, path: Path, *, model: str, version: str, tell: Tell) -> None:
    """See `Backend.write`."""
    tell("tracing")
    traced = trace(stage, plan)
    del stage
    gc.collect()
    tell("converting")
    write_package(traced, plan, path, model=model, version=version)


def look_whole(plan: StagePlan, path: Path) -> bool:
    """See `Backend.look_whole`."""
    with reading_back(plan.stage):
        graph = read_graph(open_package(path))
    return (plan.nbits is not None or plan.recipe) and bool(find_layers(graph))


def compress(plan: StagePlan, recipe: Path | None, dense: Path, target: Path, tell: Tell) -> float:
    """See `Backend.compress`: palettes, of one width or of a recipe's."""
    result = palettize(
        dense,
        target,
        nbits=None if recipe else plan.nbits,
        recipe=read_recipe(recipe) if recipe else None,
        progress=lambda _what, done, of: tell("compressing", done, of),
    )
    return round(result.bits_per_weight, 2)


def cut(plan: StagePlan, whole: Path, targets: tuple[Path, Path]) -> None:
    """See `Backend.cut`."""
    bisect(whole, targets, plan.stage)


def open(plan: StagePlan, path: Path) -> Runtime:
    """See `Backend.open`."""
    return ReferenceRuntime.load(path)


def checks_in_time(size_bytes: int) -> bool:
    """See `Backend.checks_in_time`: the reference runtime is as fast as torch."""
    return True


def trace(stage: torch.nn.Module, plan: StagePlan) -> Any:
    """The stage as TorchScript, traced at its default size."""
    examples = tuple(example(tensor) for tensor in plan.inputs)
    with warnings.catch_warnings(), torch.no_grad():
        # What depends on Python numbers is fixed by tracing: wanted, as a package has the sizes that it has.
        warnings.simplefilter("ignore")
        return torch.jit.trace(stage, examples, check_trace=False, strict=False)


def write_package(traced: Any, plan: StagePlan, path: Path, *, model: str, version: str) -> None:
    """Converts a trace and writes it. Raises ConversionError, and leaves nothing of use, if that fails."""
    with _coremltools(path.parent, plan.stage):
        converted = ct.convert(
            traced,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, plan.target),
            inputs=[_input(tensor) for tensor in plan.inputs],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in plan.outputs],
            compute_precision=ct.precision.FLOAT32 if plan.float32 else ct.precision.FLOAT16,
            compute_units=ct.ComputeUnit.CPU_ONLY,
            skip_model_load=True,
        )
        converted.author = f"See the model card of {model}"
        converted.short_description = f"{plan.stage} of {model}"
        converted.version = version
        converted.user_defined_metadata["renderkiln.settings_digest"] = plan.settings_digest
        described = [(converted.input_description, each.name) for each in plan.inputs]
        described += [(converted.output_description, name) for name in plan.outputs]
        for descriptions, name in described:
            descriptions[name] = DESCRIPTIONS.get(name, RESIDUAL)
        converted.save(str(path))
    open_package(path)


def bisect(package: Path, targets: tuple[Path, Path], stage: str) -> None:
    """Cuts a package into two of about the same size, whose second takes what the first gives."""
    folder = package.parent / "chunks"
    with _coremltools(package.parent, stage):
        ct.models.utils.bisect_model(str(package), str(folder), check_output_correctness=False)
        for number, target in enumerate(targets, start=1):
            (folder / f"{package.stem}_chunk{number}.mlpackage").replace(target)


def _input(tensor: TensorInfo) -> Any:
    several = len(tensor.shapes) > 1
    shape = ct.EnumeratedShapes(list(tensor.shapes), default=tensor.shapes[0]) if several else tensor.shapes[0]
    return ct.TensorType(name=tensor.name, shape=shape, dtype=np.dtype(tensor.dtype).type)


@contextmanager
def _coremltools(folder: Path, stage: str) -> Iterator[None]:
    """Temporary files beside the target, no progress bars of its own, and its errors as ours."""
    with quietly(), checking_itself_less(), temporary_files_in(folder), errors_of("coremltools", stage, folder):
        yield

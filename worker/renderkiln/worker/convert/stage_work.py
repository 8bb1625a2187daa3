"""Converts one stage from beginning to end: load, run the original, trace, convert, check, compress, cut, hash."""

from __future__ import annotations

import ctypes
import gc
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from renderkiln.schema.errors import ConversionError, ModelLoadError

from ..runtimes.manifest import CheckReport, PackageInfo, Psnr
from ..runtimes.mlpackage import open_package
from ..runtimes.reference.graph import Graph
from .attention import rewrite_attention
from .check import BAR, Outputs, compare, hold_to_bar, reference_outputs
from .compress.layers import find_layers, read_graph
from .compress.palettize import palettize
from .compress.recipe_file import read_recipe
from .coreml import bisect, read_interface, trace, write_package
from .inputs import Inputs, make_inputs
from .jobs import Done, StageJob
from .loading import load_component, load_controlnet, load_projection
from .plan import PROJECTION, StagePlan
from .stages import make_stage

Tell = Callable[..., None]


def convert_stage(job: StageJob, tell: Tell) -> Done:
    """Writes a stage's packages into the job's folder.

    Args:
        tell: called with a phase of `jobs.PHASES`, and how much of how much of it is done.

    Raises:
        ConversionCheckError: the result is too far from the original.
        RenderkilnError: it cannot be converted, for another reason.
    """
    started = time.monotonic()
    torch.set_grad_enabled(False)
    plan, dense = job.plan, job.folder / "stage.mlpackage"
    inputs: dict[str, Inputs] = {}
    tell("loading")
    if job.check:
        inputs = make_inputs(plan, job.source, job.family, job.loras, job.random_inputs)
        _give_back()
    expected = _write_dense(job, dense, inputs, tell)
    graph = _look_whole(plan, dense)
    _give_back()

    def measure(*packages: Path) -> tuple[Psnr, ...]:
        tell("checking", 0, len(inputs))
        return compare(plan, packages, inputs, expected, lambda done, of: tell("checking", done, of))

    whole, bits, report = dense, _bits(plan), None
    results: tuple[Psnr, ...] = ()
    # A stage may be too small to have a weight that is worth a palette.
    squeeze = (plan.nbits is not None or plan.recipe) and bool(find_layers(graph))
    if job.check and (squeeze or len(plan.files) == 1):
        results = measure(dense)
        hold_to_bar(plan.stage, results)
        report = CheckReport(bar=BAR, results=results)
    if squeeze:
        whole, bits = _compress(job, dense, tell)
        _remove(dense)
    packages = _finish(plan, whole, job.folder, tell)
    if job.check and (squeeze or len(packages) > 1):
        final = measure(*packages)
        if not squeeze:
            hold_to_bar(plan.stage, final)
        report = CheckReport(bar=BAR, results=results or final, compressed=final if squeeze else ())
    tell("hashing")
    return Done(
        packages=tuple(_describe(package) for package in packages),
        bits=bits,
        check=report,
        seconds=round(time.monotonic() - started, 3),
        peak_bytes=_peak_bytes(),
    )


def _write_dense(job: StageJob, path: Path, inputs: dict[str, Inputs], tell: Tell) -> dict[str, Outputs]:
    """Converts to 16 bits (or float32); gives what the original made of the inputs. The original is gone afterwards."""
    plan = job.plan
    expected: dict[str, Outputs] = {}
    tell("loading")
    module = _load(job)
    if job.check:
        # Before anything is rewritten: what is compared with is the model as diffusers runs it.
        stock = make_stage(plan, module, family=job.family, channels_first=False)
        expected = reference_outputs(plan, stock, inputs, lambda done, of: tell("running the original", done, of))
        del stock
    tell("tracing")
    if plan.attention is not None:
        rewrite_attention(module, plan.attention)
    rewritten = plan.attention not in (None, "original")
    traced = trace(make_stage(plan, module, family=job.family, channels_first=rewritten), plan)
    del module
    gc.collect()
    tell("converting")
    write_package(traced, plan, path, model=job.source.name, version=job.source.revision or "")
    return expected


def _load(job: StageJob) -> Any:
    if job.plan.kind == "controlnet":
        return load_controlnet(job.source.controlnets[int(job.plan.component)][1])
    if job.plan.kind == PROJECTION:
        assert job.source.projection is not None
        return load_projection(job.source.projection)
    module = load_component(job.source, job.plan.component, job.loras)
    if job.plan.component == "vae":
        # The other half would only take room.
        unused = ("encoder", "quant_conv") if job.plan.kind == "vae_decoder" else ("decoder", "post_quant_conv")
        for name in unused:
            setattr(module, name, None)
    return module


def _compress(job: StageJob, dense: Path, tell: Tell) -> tuple[Path, float]:
    target = job.folder / "small.mlpackage"
    recipe = read_recipe(job.recipe) if job.recipe is not None and job.plan.recipe else None
    tell("compressing")
    result = palettize(
        dense,
        target,
        nbits=None if recipe else job.plan.nbits,
        recipe=recipe,
        progress=lambda _what, done, of: tell("compressing", done, of),
    )
    _give_back()
    return target, round(result.bits_per_weight, 2)


def _finish(plan: StagePlan, whole: Path, folder: Path, tell: Tell) -> tuple[Path, ...]:
    """The packages under their own names."""
    targets = tuple(folder / name for name in plan.files)
    if len(targets) == 1:
        whole.replace(targets[0])
        return targets
    tell("cutting in two")
    bisect(whole, (targets[0], targets[1]), plan.stage)
    _remove(whole)
    for target in targets:
        _look_whole(plan, target)
    _give_back()
    return targets


def _look_whole(plan: StagePlan, path: Path) -> Graph:
    """Sees that every constant is there: what writes the weights does not always notice a full disk."""
    try:
        return read_graph(open_package(path))
    except ModelLoadError as error:
        raise ConversionError(
            f"{plan.stage}: what was written cannot be read back; is the disk full? ({error})"
        ) from error


def _describe(package: Path) -> PackageInfo:
    opened = open_package(package)
    inputs, outputs = read_interface(package)
    return PackageInfo(
        file=package.name, size_bytes=opened.size, sha256=opened.sha256(), inputs=inputs, outputs=outputs
    )


def _bits(plan: StagePlan) -> float:
    return 32.0 if plan.float32 else 16.0


def _remove(package: Path) -> None:
    shutil.rmtree(package)


def _give_back() -> None:
    """Gives freed memory back to the system, so that two steps of a stage do not stand on each other's shoulders."""
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return  # another C library


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

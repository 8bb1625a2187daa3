"""Converts one stage from beginning to end: load, run the original, trace, convert, check, compress, cut, hash."""

from __future__ import annotations

import ctypes
import gc
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..runtimes.chain import Chain
from ..runtimes.describing import describe
from ..runtimes.manifest import CheckReport, Psnr
from .attention import rewrite_attention
from .backends import Backend, Tell, backend_for
from .check import BAR, Outputs, compare, hold_to_bar, reference_outputs
from .inputs import Inputs, make_inputs
from .jobs import Done, StageJob
from .loading import load_component, load_controlnet, load_projection, unused_half, weights_size
from .plan import PROJECTION, SUFFIXES, StagePlan
from .stages import make_stage


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
    plan = job.plan
    backend = backend_for(plan.format)
    dense = job.folder / f"stage{SUFFIXES[plan.format]}"
    inputs: dict[str, Inputs] = {}
    tell("loading")
    check = job.check and (job.check_slowly or backend.checks_in_time(weights_size(job.source, plan)))
    if check:
        inputs = make_inputs(plan, job.source, job.family, job.loras, job.random_inputs)
        _give_back()
    expected = _write_dense(job, backend, dense, inputs, tell)
    # A stage may be too small to have a weight that is worth fewer bits.
    squeeze = backend.look_whole(plan, dense)
    _give_back()

    def measure(*packages: Path) -> tuple[Psnr, ...]:
        tell("checking", 0, len(inputs))
        stage = Chain([backend.open(plan, package) for package in packages])
        return compare(plan, stage, inputs, expected, lambda done, of: tell("checking", done, of))

    whole, bits, report = dense, 32.0 if plan.float32 else 16.0, None
    results: tuple[Psnr, ...] = ()
    if check and (squeeze or len(plan.files) == 1):
        results = measure(dense)
        hold_to_bar(plan.stage, results)
        report = CheckReport(bar=BAR, results=results)
    if squeeze:
        tell("compressing")
        whole = job.folder / f"small{SUFFIXES[plan.format]}"
        bits = backend.compress(plan, job.recipe if plan.recipe else None, dense, whole, tell)
        _give_back()
        shutil.rmtree(dense)
    packages = _finish(plan, backend, whole, job.folder, tell)
    if check and (squeeze or len(packages) > 1):
        final = measure(*packages)
        if not squeeze:
            hold_to_bar(plan.stage, final)
        report = CheckReport(bar=BAR, results=results or final, compressed=final if squeeze else ())
    tell("hashing")
    return Done(
        packages=tuple(describe(package, plan.functions) for package in packages),
        bits=bits,
        check=report,
        seconds=round(time.monotonic() - started, 3),
        peak_bytes=_peak_bytes(),
    )


def _write_dense(
    job: StageJob, backend: Backend, path: Path, inputs: dict[str, Inputs], tell: Tell
) -> dict[str, Outputs]:
    """Converts to 16 bits (or float32); gives what the original made of the inputs, if there are any.

    The original is gone afterwards.
    """
    plan = job.plan
    expected: dict[str, Outputs] = {}
    tell("loading")
    module = _load(job)
    if inputs:
        # Before anything is rewritten: what is compared with is the model as diffusers runs it.
        stock = make_stage(plan, module, family=job.family, channels_first=False)
        expected = reference_outputs(plan, stock, inputs, lambda done, of: tell("running the original", done, of))
        del stock
    if plan.attention is not None:
        rewrite_attention(module, plan.attention)
    rewritten = plan.attention not in (None, "original")
    stage = make_stage(plan, module, family=job.family, channels_first=rewritten)
    del module
    backend.write(stage, plan, path, model=job.source.name, version=job.source.revision or "", tell=tell)
    return expected


def _load(job: StageJob) -> Any:
    if job.plan.kind == "controlnet":
        return load_controlnet(job.source.controlnets[int(job.plan.component)][1])
    if job.plan.kind == PROJECTION:
        assert job.source.projection is not None
        return load_projection(job.source.projection)
    module = load_component(job.source, job.plan.component, job.loras)
    for name in unused_half(job.plan):
        setattr(module, name, None)  # it would only take room
    return module


def _finish(plan: StagePlan, backend: Backend, whole: Path, folder: Path, tell: Tell) -> tuple[Path, ...]:
    """The packages under their own names."""
    targets = tuple(folder / name for name in plan.files)
    if len(targets) == 1:
        whole.replace(targets[0])
        return targets
    tell("cutting in two")
    backend.cut(plan, whole, (targets[0], targets[1]))
    shutil.rmtree(whole)
    for target in targets:
        backend.look_whole(plan, target)
    _give_back()
    return targets


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

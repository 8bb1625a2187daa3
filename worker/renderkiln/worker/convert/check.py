"""Compares what a converted stage gives with what its torch original gives, in decibels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from renderkiln.schema.errors import ConversionCheckError

from ..runtimes.base import Array, Runtime
from ..runtimes.manifest import Psnr
from .inputs import Inputs
from .plan import StagePlan

#: Apple's bar for each output.
BAR = 35.0
#: A score so near to zero may fall on its other side in half precision; the flag is then no measure of anything.
_UNDECIDED = 0.01

Outputs = dict[str, Array]


def psnr(original: Array, converted: Array) -> float:
    """Peak signal-to-noise ratio in decibels: the original's largest magnitude over the root mean square error.

    The small terms are Apple's; with them the same zeros compare as 100 dB and nothing divides by zero.
    """
    a, b = original.astype(np.float64), converted.astype(np.float64)
    error = float(np.sqrt(np.mean((a - b) ** 2)))
    if not np.isfinite(error):
        return -np.inf
    return float(20 * np.log10((np.abs(a).max() + 1e-5) / (error + 1e-10)))


def reference_outputs(
    plan: StagePlan, stage: torch.nn.Module, inputs: Mapping[str, Inputs], tell: Callable[[int, int], None]
) -> dict[str, Outputs]:
    """What the torch original gives for each of the inputs."""
    results: dict[str, Outputs] = {}
    for number, (name, arrays) in enumerate(inputs.items()):
        tell(number, len(inputs))
        with torch.inference_mode():
            outputs = stage(*(as_tensor(arrays[tensor.name], tensor.name) for tensor in plan.inputs))
        results[name] = {
            output: value.to(torch.float32).numpy() for output, value in zip(plan.outputs, outputs, strict=True)
        }
    return results


def compare(
    plan: StagePlan,
    converted: Runtime,
    inputs: Mapping[str, Inputs],
    expected: Mapping[str, Outputs],
    tell: Callable[[int, int], None],
) -> tuple[Psnr, ...]:
    """Runs the converted stage, its chunks as one, and measures every output of every input."""
    results = []
    for number, (name, arrays) in enumerate(inputs.items()):
        tell(number, len(inputs))
        found = converted.predict(arrays)
        for output in _measured(plan, expected[name]):
            results.append(
                Psnr(inputs=name, output=output, decibels=round(psnr(expected[name][output], found[output]), 2))
            )
    return tuple(results)


def hold_to_bar(stage: str, results: Sequence[Psnr]) -> None:
    """Raises ConversionCheckError if any output is below the bar."""
    worst = min(results, key=lambda each: each.decibels)
    if not worst.decibels >= BAR:  # so that a NaN fails as well
        raise ConversionCheckError(
            f"{stage}: its output {worst.output} comes to {worst.decibels:.1f} dB of the original for the inputs "
            f"'{worst.inputs}'; {BAR:.0f} dB are needed. The stage was not written"
        )


def _measured(plan: StagePlan, expected: Outputs) -> tuple[str, ...]:
    if plan.kind == "safety_checker" and float(np.abs(expected["concept_scores"]).min()) < _UNDECIDED:
        return ("concept_scores",)
    return plan.outputs


def as_tensor(array: Array, name: str) -> torch.Tensor:
    """A stage's input as its original takes it: float32, but token ids, which Core ML has as floats, as integers."""
    return torch.from_numpy(array.astype(np.int32 if name == "input_ids" else np.float32))

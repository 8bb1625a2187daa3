"""Which part of a model's estimated cost Core ML means to run on which device.

A model that is meant for the Neural Engine and mostly runs on the CPU loads, renders, and is slow: nothing else shows
it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from renderkiln.schema.errors import ModelLoadError

from .coreml import load_plan
from .system import ComputeUnit

Device = Literal["cpu", "gpu", "neural_engine", "unknown"]
_DEVICES: dict[str, Device] = {
    "MLCPUComputeDevice": "cpu",
    "MLGPUComputeDevice": "gpu",
    "MLNeuralEngineComputeDevice": "neural_engine",
}


@dataclass(frozen=True)
class Shares:
    """The shares of a model's estimated cost, as Core ML estimates it; nothing was run."""

    #: By device, from 0 to 1, together 1; devices without a share are not there. `unknown`: Core ML does not say.
    devices: dict[Device, float]
    #: By operation, from 0 to 1, what is meant to run on the CPU, the costliest kind first.
    on_cpu: dict[str, float]
    #: How many operations have a cost.
    operations: int


def shares_of(path: Path, unit: ComputeUnit) -> Shares:
    """The shares of a compiled model on this Mac.

    Raises:
        ModelLoadError: as `coreml.load_plan`, and where the model is no ML program.
    """
    return shares(load_plan(path, unit))


def shares(plan: Any, function: str = "main") -> Shares:
    """The shares of an `MLComputePlan`'s cost by device.

    Args:
        plan: coremltools' object.
        function: of programs that have it; other programs are taken by their only function.

    Raises:
        ModelLoadError: the model is no ML program and no pipeline of them, has no such function, or no cost is known.
    """
    devices: Counter[Device] = Counter()
    on_cpu: Counter[str] = Counter()
    operations = 0
    for operation in _operations(plan.model_structure, function):
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        if cost is None or not cost.weight > 0:  # constants have none
            continue
        operations += 1
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        device = _DEVICES.get(type(usage.preferred_compute_device).__name__, "unknown") if usage else "unknown"
        devices[device] += cost.weight
        if device == "cpu":
            on_cpu[operation.operator_name] += cost.weight
    total = sum(devices.values())
    if not total:
        raise ModelLoadError("Core ML estimates no cost for any operation of the model")
    return Shares(
        devices={device: cost / total for device, cost in devices.most_common()},
        on_cpu={name: cost / total for name, cost in on_cpu.most_common()},
        operations=operations,
    )


def _operations(structure: Any, function: str) -> Iterator[Any]:
    if structure.pipeline is not None:
        for _, part in structure.pipeline.sub_models:
            yield from _operations(part, function)
        return
    if structure.program is None:
        raise ModelLoadError("the model is no ML program; what runs where is known of ML programs alone")
    functions = structure.program.functions
    if function not in functions and len(functions) != 1:
        raise ModelLoadError(f"the model has no function {function!r}; it has: {', '.join(sorted(functions))}")
    yield from _in_block((functions.get(function) or next(iter(functions.values()))).block)


def _in_block(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _in_block(inner)

"""Shares of the estimated cost by device, over coremltools' own plan objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.runtimes.apple.cache import CompileCache, Key
from renderkiln.worker.runtimes.apple.coreml import compile_package
from renderkiln.worker.runtimes.apple.plan import shares, shares_of

from .binding import Recording

#: Operator, weight (None: no estimate), device (None: no usage), the operations inside.
Operation = tuple[str, float | None, str | None, Sequence[Any]]
SMALL: tuple[Operation, ...] = (
    ("const", None, None, ()),
    ("conv", 0.5, "NeuralEngine", ()),
    ("softmax", 0.25, "CPU", ()),
    ("gelu", 0.25, "GPU", ()),
)


class _Made:
    """Makes plan objects with coremltools' own classes; only the proxies inside are doubles."""

    def __init__(self) -> None:
        self.weights: dict[int, Any] = {}
        self.devices: dict[int, Any] = {}

    def block(self, operations: Sequence[Operation]) -> Any:
        from coremltools.models import compute_plan

        return compute_plan.MLModelStructureProgramBlock([], [self._operation(*each) for each in operations], [])

    def _operation(self, name: str, weight: float | None, device: str | None, inner: Sequence[Operation]) -> Any:
        from coremltools import libcoremlpython
        from coremltools.models import compute_device, compute_plan

        key = len(self.weights)
        self.weights[key] = None if weight is None else compute_plan.MLComputePlanCost(weight)
        self.devices[key] = None
        if device is not None:
            proxy = getattr(libcoremlpython, f"_ML{device}ComputeDeviceProxy")()
            made = getattr(compute_device, f"ML{device}ComputeDevice")(proxy)
            self.devices[key] = compute_plan.MLComputePlanDeviceUsage(made, [made])
        blocks = [self.block(inner)] if inner else []
        return compute_plan.MLModelStructureProgramOperation({}, name, [], blocks, key)

    def program(self, **functions: Sequence[Operation]) -> Any:
        from coremltools.models import compute_plan as plan

        made = {
            name: plan.MLModelStructureProgramFunction([], self.block(operations))
            for name, operations in functions.items()
        }
        return plan.MLModelStructure(None, plan.MLModelStructureProgram(made), None)

    def proxy(self, structure: Any) -> Any:
        from coremltools.libcoremlpython import _MLComputePlanProxy

        return _MLComputePlanProxy(structure, self.weights, self.devices)


def small_plan() -> Any:
    """What the double's `get_compute_plan` needs to give the plan of `SMALL`."""
    made = _Made()
    return made.proxy(made.program(main=SMALL))


def plan_of(**functions: Sequence[Operation]) -> Any:
    from coremltools.models.compute_plan import MLComputePlan

    made = _Made()
    return MLComputePlan(made.proxy(made.program(**functions)))


@pytest.mark.usefixtures("mac")
def test_shares_of_a_program() -> None:
    found = shares(plan_of(main=SMALL))
    assert found.devices == {"neural_engine": 0.5, "cpu": 0.25, "gpu": 0.25}
    assert (found.on_cpu, found.operations) == ({"softmax": 0.25}, 3)


@pytest.mark.usefixtures("mac")
def test_shares_add_up_to_one_whatever_the_weights_do() -> None:
    operations = (("conv", 0.2, "CPU", ()), ("conv", 0.2, "CPU", ()), ("add", 0.1, None, ()), ("mul", 0.0, "GPU", ()))
    found = shares(plan_of(main=operations))
    assert found.devices == pytest.approx({"cpu": 0.8, "unknown": 0.2})
    assert found.on_cpu == pytest.approx({"conv": 0.8})


@pytest.mark.usefixtures("mac")
def test_operations_inside_of_operations_count() -> None:
    found = shares(plan_of(main=(("cond", None, None, SMALL), ("add", 1.0, "CPU", ()))))
    assert found.devices == {"cpu": 0.625, "neural_engine": 0.25, "gpu": 0.125}


@pytest.mark.usefixtures("mac")
def test_a_pipeline_is_all_its_programs() -> None:
    from coremltools.models import compute_plan as plans

    made = _Made()
    parts = [("one", made.program(main=SMALL)), ("two", made.program(main=(("add", 1.0, "CPU", ()),)))]
    structure = plans.MLModelStructure(None, None, plans.MLModelStructurePipeline(parts))
    assert shares(plans.MLComputePlan(made.proxy(structure))).devices["cpu"] == 0.625


@pytest.mark.usefixtures("mac")
def test_functions() -> None:
    plan = plan_of(small=SMALL, large=(("add", 1.0, "CPU", ()),))
    assert shares(plan, "large").devices == {"cpu": 1.0}
    assert shares(plan_of(only=SMALL)).operations == 3
    with pytest.raises(ModelLoadError, match="no function 'main'; it has: large, small"):
        shares(plan)


@pytest.mark.usefixtures("mac")
def test_what_has_no_shares() -> None:
    from coremltools.models import compute_plan as plans

    network = plans.MLModelStructure(plans.MLModelStructureNeuralNetwork([]), None, None)
    with pytest.raises(ModelLoadError, match="no ML program"):
        shares(plans.MLComputePlan(_Made().proxy(network)))
    with pytest.raises(ModelLoadError, match="no cost"):
        shares(plan_of(main=(("const", None, None, ()),)))


def test_shares_of_a_compiled_model(mac: Recording, package: Path, cache: CompileCache) -> None:
    lease = cache.lease(Key("0" * 64, "all", "x"), lambda target: compile_package(package, target))
    mac.plan = small_plan()
    assert shares_of(lease.path, "all").devices["neural_engine"] == 0.5
    with pytest.raises(ModelLoadError, match="no compiled model"):
        shares_of(package, "all")  # Core ML would end the process
    mac.version = (14, 3)
    with pytest.raises(ModelLoadError, match=r"macOS 14\.4"):
        shares_of(lease.path, "all")

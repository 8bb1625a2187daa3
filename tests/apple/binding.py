"""Stands in for `coremltools.libcoremlpython`, the compiled module that exists on macOS alone; all of coremltools'
Python above it is the real one.

As strict as what it stands for (coremlpython/CoreMLPython.mm and CoreMLPythonUtils.mm of coremltools 9): it takes the
types that pybind11 takes there, wants arrays that are writable, float32, float64 or int32, hands half-precision outputs
over as float32, and tells errors as Core ML does. What it computes comes from the reference runtime.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

INSIDE = "package.mlpackage"


class Aborted(BaseException):
    """Where Core ML ends the whole process."""


@dataclass
class Recording:
    """What was asked of Core ML, and what it shall do wrong."""

    version: tuple[int, int] = (15, 6)
    calls: Counter[str] = field(default_factory=Counter)
    loaded: list[tuple[Any, ...]] = field(default_factory=list)
    #: Raised by the next call of this name.
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    #: Applied to the outputs of each prediction.
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda outputs: outputs
    #: What `get_compute_plan` gives.
    plan: Any = None
    temporary: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    def called(self, name: str) -> None:
        self.calls[name] += 1
        if self.faults.get(name):
            raise self.faults[name].pop(0)


def core_ml_error(text: str) -> RuntimeError:
    """As `Utils::handleError` prints an NSError's userInfo."""
    return RuntimeError(f'{{\n    NSLocalizedDescription = "{text}";\n}}')


def install(
    recording: Recording,
    set_attribute: Callable[[Any, str, Any], object] = setattr,
    set_item: Callable[[Any, str, Any], object] = dict.__setitem__,
) -> None:
    """Has coremltools, and us, believe that this is a Mac, with the double for a binding."""
    from renderkiln.worker.runtimes.apple import coreml
    from renderkiln.worker.runtimes.mlpackage import model_proto

    model_proto()  # imports coremltools without its remarks
    import coremltools.models._compiled_model as compiled
    import coremltools.models.compute_device as device
    import coremltools.models.compute_plan as plan
    import coremltools.models.model as model
    from coremltools.models import utils

    binding = make_binding(recording)
    set_item(sys.modules, "coremltools.libcoremlpython", binding)
    for module in (compiled, device, plan, model):
        for name in vars(binding):
            if name.endswith("Proxy") and hasattr(module, name):
                set_attribute(module, name, getattr(binding, name))
    for module in (utils, model, compiled, coreml):
        for name in ("_macos_version", "macos_version"):
            if hasattr(module, name):
                set_attribute(module, name, lambda: recording.version)
        for name in ("_is_macos", "on_macos"):
            if hasattr(module, name):
                set_attribute(module, name, lambda: True)


def make_binding(recording: Recording) -> ModuleType:
    """The module, with the classes that coremltools takes from it."""

    class _MLModelProxy:
        def __init__(self, url: str, unit: str, function: str, hints: dict[str, str], asset: Any) -> None:
            _takes(("url", url, str), ("unit", unit, str), ("function", function, str), ("hints", hints, dict))
            assert unit in ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")
            assert asset is None
            assert url.endswith(".mlmodelc"), "would be compiled to a temporary folder and deleted again"
            recording.called("load")
            recording.loaded.append((url, unit, function, hints))
            if (function or hints) and recording.version < (15, 0):
                raise RuntimeError("The 'functionName' property can only be set on macOS >= 15.0")
            _needs_heart(url)
            if not (Path(url) / INSIDE).is_dir():
                raise core_ml_error(
                    f"Failed to build the model execution plan using '{url}/model.mil' error code: -14."
                )
            from renderkiln.worker.runtimes.reference import ReferenceRuntime  # imports torch

            self._runtime = ReferenceRuntime.load(Path(url) / INSIDE, function=function or None)

        def predict(self, data: dict[str, Any], state: Any) -> dict[str, Any]:
            _takes(("data", data, dict))
            assert state is None
            recording.called("predict")
            inputs = {}
            for name, array in data.items():
                _takes(("name", name, str))
                plain = isinstance(array, np.ndarray) and array.dtype in (np.float32, np.float64, np.int32)
                if not plain or not array.flags.writeable:
                    raise RuntimeError("value type not convertible")
                assert all(stride >= 0 for stride in array.strides), "read through strides without a sign"
                inputs[name] = array.astype(self._runtime.inputs[name].dtype)
            outputs = self._runtime.predict(inputs)
            widened = {key: v.astype(np.float32) if v.dtype == np.float16 else v for key, v in outputs.items()}
            return recording.change(dict(reversed(widened.items())))

        @staticmethod
        def compileModel(url: str) -> str:
            _takes(("url", url, str))
            os.write(1, b"a very verbose compiler\n")
            recording.called("compile")
            if not (Path(url) / "Manifest.json").is_file():
                raise core_ml_error("A valid manifest does not exist at path.")
            target = Path(tempfile.mkdtemp(dir=recording.temporary)) / f"{Path(url).stem}.mlmodelc"
            shutil.copytree(url, target / INSIDE)
            (target / "coremldata.bin").write_bytes(b"heart")
            return str(target)

        @staticmethod
        def get_compute_plan(url: str, unit: str) -> Any:
            _takes(("url", url, str), ("unit", unit, str))
            recording.called("plan")
            _needs_heart(url)
            from coremltools.models.compute_plan import MLComputePlan

            return MLComputePlan(recording.plan)

    class _MLComputePlanProxy:
        def __init__(self, structure: Any = None, weights: Any = (), devices: Any = ()) -> None:
            self.model_structure = structure
            self._weights, self._devices = dict(weights), dict(devices)

        def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
            return self._weights.get(operation.__proxy__)

        def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
            return self._devices.get(operation.__proxy__)

    class _MLCPUComputeDeviceProxy:
        pass

    class _MLGPUComputeDeviceProxy:
        pass

    class _MLNeuralEngineComputeDeviceProxy:
        pass

    module = ModuleType("coremltools.libcoremlpython")
    for each in (
        _MLModelProxy,
        _MLComputePlanProxy,
        _MLCPUComputeDeviceProxy,
        _MLGPUComputeDeviceProxy,
        _MLNeuralEngineComputeDeviceProxy,
    ):
        setattr(module, each.__name__, each)
    return module


def _takes(*arguments: tuple[str, Any, type]) -> None:
    """pybind11 looks at types alone, and refuses with a TypeError."""
    for name, value, kind in arguments:
        if not isinstance(value, kind):
            raise TypeError(f"incompatible function arguments: {name} is {type(value).__name__}")


def _needs_heart(url: str) -> None:
    if not (Path(url) / "coremldata.bin").is_file():
        raise Aborted(f"Failed to open file: {url}/coremldata.bin. It is not a valid .mlmodelc file.")

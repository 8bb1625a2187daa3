"""The runtime for macOS: a package or a compiled model on Core ML, behind the face of every runtime."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from renderkiln.schema.errors import ModelLoadError, PredictionError

from ..base import Array, TensorInfo
from ..checks import check_inputs
from ..manifest import PackageInfo
from ..mlpackage import open_package
from .cache import CompileCache, Key, Lease
from .coreml import compile_package, coremltools, load_compiled
from .failures import disk_full, predict_failure
from .system import ComputeUnit


class AppleRuntime:
    """One model, loaded by Core ML.

    Other Python threads stand still while it loads or predicts. Core ML is reported not to give all of a model's memory
    back when it is dropped; only the end of the process does.
    """

    def __init__(
        self, model: Any, info: PackageInfo, name: str, unit: ComputeUnit, lease: Lease | None, load_seconds: float
    ) -> None:
        """Use `load`."""
        self._model, self._name, self._lease = model, name, lease
        self._inputs = MappingProxyType({tensor.name: tensor for tensor in info.inputs})
        self._outputs = MappingProxyType({tensor.name: tensor for tensor in info.outputs})
        self.compute_unit = unit
        #: What loading took, without compiling.
        self.load_seconds = load_seconds
        #: What compiling took, None where that had been done before.
        self.compiled_in = lease.compiled_in if lease else None

    @classmethod
    def load(
        cls,
        path: Path,
        info: PackageInfo,
        *,
        compute_unit: ComputeUnit,
        cache: CompileCache,
        function: str | None = None,
    ) -> AppleRuntime:
        """Loads a model, and compiles it first where the cache has no compiled one.

        Args:
            path: of a `.mlpackage`, or of a `.mlmodelc`, which is loaded from where it is.
            info: what the manifest says of it; its inputs, outputs and SHA-256 are taken from there.
            compute_unit: what it may run on. One process should stay with one unit: changing has broken pictures.
            cache: where compiled models are kept.
            function: which function, where a model has several; otherwise its default. Needs macOS 15.

        Raises:
            ModelLoadError: this is not macOS; the package is not what the manifest says; Core ML refuses it.
            OutOfMemoryError: memory ran out.
        """
        coremltools()  # says at once where there is no Core ML, before anything is read
        if path.suffix == ".mlmodelc":
            began = time.monotonic()
            model = load_compiled(path, path.name, info.inputs, compute_unit, function)
            return cls(model, info, path.name, compute_unit, None, time.monotonic() - began)
        key = Key(info.sha256, compute_unit, str(path))
        lease = cache.lease(key, lambda target: _compile(path, info, target))
        try:
            return cls._from_cache(lease, path, info, compute_unit, function)
        except ModelLoadError:
            lease.release()
            if lease.compiled_in is not None:
                raise
        # It is as long as it was, and still Core ML does not take it: what a disk did to it shows in no size.
        cache.forget(key)
        lease = cache.lease(key, lambda target: _compile(path, info, target))
        return cls._from_cache(lease, path, info, compute_unit, function)

    @classmethod
    def _from_cache(
        cls, lease: Lease, path: Path, info: PackageInfo, unit: ComputeUnit, function: str | None
    ) -> AppleRuntime:
        began = time.monotonic()
        model = load_compiled(lease.path, path.name, info.inputs, unit, function)
        return cls(model, info, path.name, unit, lease, time.monotonic() - began)

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """What `predict` takes, by name."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """What `predict` gives, by name."""
        return self._outputs

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the model once.

        Args:
            inputs: an array for each of `inputs`, of its dtype and of one of its shapes.

        Returns:
            An array for each of `outputs`, of its dtype, each with its own memory.

        Raises:
            PredictionError: an input is missing, unknown, or does not fit; Core ML cannot run the model; or gives what
                the manifest does not declare.
            OutOfMemoryError: memory ran out, or Core ML says what it says mostly then.
        """
        if self._model is None:
            raise PredictionError(f"{self._name} was closed")
        check_inputs(self._name, self._inputs, inputs)
        # A dictionary of our own: coremltools exchanges arrays in the one that it is given. Core ML reads them in
        # place, through strides that cannot be negative; the binding wants them writable, though nothing writes there.
        given = {name: np.require(array, requirements=("C", "A", "W")) for name, array in inputs.items()}
        try:
            results = self._model.predict(given)
        except Exception as error:
            raise predict_failure(error, self._name, self.compute_unit) from error
        return {name: self._output(info, results) for name, info in self._outputs.items()}

    def close(self) -> None:
        """Drops the model, and lets the cache remove it; may be called again."""
        self._model = None
        if self._lease is not None:
            self._lease.release()

    def _output(self, info: TensorInfo, results: Mapping[str, Any]) -> Array:
        value = results.get(info.name)
        if not isinstance(value, np.ndarray):
            what = f"{type(value).__name__}, not an array" if info.name in results else "nothing"
            raise PredictionError(f"{self._name}: Core ML gave {what} for the output {info.name}")
        if info.dtype == "float16" and value.dtype == np.float32:
            value = _narrow(value)
        wrong = info.complaint(value)
        if wrong is not None:
            raise PredictionError(f"{self._name}: Core ML's output is not what the manifest declares: {wrong}")
        return np.array(value, order="C")


def _narrow(value: Array) -> Array:
    """Half-precision numbers, which coremltools hands over widened, as they were. Left as it is if they were none."""
    with np.errstate(over="ignore"):
        narrow = value.astype(np.float16)
    return narrow if np.array_equal(narrow.astype(np.float32), value, equal_nan=True) else value


def _compile(path: Path, info: PackageInfo, target: Path) -> None:
    """Compiles a package that is what the manifest says; reading all of it once is little beside compiling it."""
    package = open_package(path)
    if package.sha256() != info.sha256:
        raise ModelLoadError(f"{path} is not what its manifest says: its SHA-256 is another. Get or convert it again.")
    if shutil.disk_usage(target.parent).free < package.size:
        raise disk_full(path.name)
    compile_package(path, target)

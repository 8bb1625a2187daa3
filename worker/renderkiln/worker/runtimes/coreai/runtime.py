"""The runtime for Core AI assets, behind the face of every runtime; that Core AI is asynchronous stays in here."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from renderkiln.schema.errors import ModelLoadError, OutOfMemoryError, PredictionError, RenderFailedError

from ...memory.words import says_out_of_memory
from ..base import Array, ComputeUnit, Shape, TensorInfo
from ..checks import check_inputs
from .description import Function, choose, describe_functions, merge, tensor
from .library import let_go, runtime, wait_for
from .system import on_all_units

_LENGTH = 400


@dataclass(frozen=True)
class _Loaded:
    """One function, ready to be called."""

    call: Any
    interface: Function

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of its inputs, in the order of their names."""
        return _in_order({tensor.name: tensor.shapes[0] for tensor in self.interface.inputs})


class CoreAIRuntime:
    """One asset, loaded by Core AI.

    On macOS 27 the system specializes a model for a unit at its first load and keeps what it made. Elsewhere the
    interpreter in Apple's Python package runs it: slowly, and the slower the narrower its numbers are.
    """

    def __init__(
        self, name: str, functions: Sequence[_Loaded], interface: Function, stack: AsyncExitStack, load_seconds: float
    ) -> None:
        """Use `load`."""
        self._name = name
        self._functions = {function.shapes: function.call for function in functions}
        self._inputs = MappingProxyType({tensor.name: tensor for tensor in interface.inputs})
        self._outputs = MappingProxyType({tensor.name: tensor for tensor in interface.outputs})
        #: What loading took; on macOS 27 with specializing, where the system had not done that before.
        self.load_seconds = load_seconds
        self._finalizer = weakref.finalize(self, _close, stack)

    @classmethod
    def load(cls, path: Path, *, compute_unit: ComputeUnit, functions: Sequence[str] = ()) -> CoreAIRuntime:
        """Loads an asset.

        Args:
            path: of the `.aimodel` folder.
            compute_unit: what it should run on; anything but `reference` needs macOS 27.
            functions: those to use, one for each size, the default size's first; `main` unless told.

        Raises:
            ModelLoadError: Core AI is not here, or not on that unit; the asset is damaged, has no such function, or
                takes what no model here does.
            OutOfMemoryError: memory ran out.
        """
        began = time.monotonic()
        names = choose(path, describe_functions(path), functions)
        options = _options(compute_unit)
        stack = AsyncExitStack()
        try:
            loaded = wait_for(_load(path, options, names, stack))
            interface = merge([each.interface for each in loaded])
        except BaseException as error:
            _close(stack)
            if isinstance(error, RenderFailedError) or not isinstance(error, Exception):
                raise
            raise _failure(error, f"{path.name} could not be loaded on {compute_unit}", ModelLoadError) from error
        return cls(path.name, loaded, interface, stack, time.monotonic() - began)

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """See `Runtime.inputs`: of each size's function, the default size's first."""
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """See `Runtime.outputs`."""
        return self._outputs

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Runtime.predict`; runs the function whose shapes the inputs have. Each array has its own memory.

        Raises:
            PredictionError: an input is missing, unknown, or does not fit, or their shapes are of different sizes; or
                Core AI cannot run the model, or gives what it does not declare.
            OutOfMemoryError: memory ran out.
        """
        if not self._finalizer.alive:
            raise PredictionError(f"{self._name} was closed")
        check_inputs(self._name, self._inputs, inputs)
        call = self._functions.get(_in_order({name: tuple(array.shape) for name, array in inputs.items()}))
        if call is None:
            raise PredictionError(f"{self._name}: the inputs' shapes do not belong to one size: {_shapes(inputs)}")
        wrap = runtime().NDArray
        try:
            results = wait_for(call({name: wrap(np.ascontiguousarray(array)) for name, array in inputs.items()}))
        except Exception as error:
            raise _failure(error, f"{self._name} could not be run", PredictionError) from error
        return {name: self._output(info, results) for name, info in self._outputs.items()}

    def close(self) -> None:
        """Drops the model; may be called again. Otherwise it goes when nothing refers to it any longer."""
        self._functions.clear()
        self._finalizer()

    def _output(self, info: TensorInfo, results: Mapping[str, Any]) -> Array:
        if info.name not in results:
            raise PredictionError(f"{self._name}: Core AI gave nothing for the output {info.name}")
        value: Array = np.array(results[info.name].numpy(), order="C")
        wrong = info.complaint(value)
        if wrong is not None:
            raise PredictionError(f"{self._name}: Core AI's output is not what the model declares: {wrong}")
        return value


async def _load(path: Path, options: Any, names: Sequence[str], stack: AsyncExitStack) -> list[_Loaded]:
    from coreai.authoring import AIModelAsset

    model = await stack.enter_async_context(AIModelAsset.load(path).executable(options))
    loaded = []
    for name in names:
        function = model.load_function(name)
        said = function.desc
        if said.state_names:
            raise ModelLoadError(f"{path} keeps a state between calls, which no stage of a pipeline does")
        takes = tuple(_tensor(path, each, said.input_descriptor(each), "takes") for each in said.input_names)
        gives = tuple(_tensor(path, each, said.output_descriptor(each), "gives") for each in said.output_names)
        loaded.append(_Loaded(function, Function(takes, gives)))
    return loaded


def _tensor(path: Path, name: str, descriptor: Any, verb: str) -> TensorInfo:
    return tensor(f"{path} {verb} {name}", name, descriptor.dtype, descriptor.shape)


def _in_order(shapes: Mapping[str, Shape]) -> tuple[Shape, ...]:
    return tuple(shapes[name] for name in sorted(shapes))


def _options(unit: ComputeUnit) -> Any:
    """What Core AI is told of a unit; None where it has no choice."""
    module = runtime()
    if not on_all_units():
        if unit != "reference":
            raise ModelLoadError(
                f"Core AI runs on {unit} from macOS 27 on; here there is an interpreter alone, --compute-unit reference"
            )
        return None
    options, kinds = module.SpecializationOptions, module.ComputeUnitKind
    if unit == "all":
        return options.default()
    if unit in ("cpu_only", "reference"):
        return options.cpu_only()
    kind = kinds.gpu() if unit == "cpu_and_gpu" else kinds.neural_engine()
    return options.from_preferred_compute_unit_kind(kind)


def _close(stack: AsyncExitStack) -> None:
    let_go(stack.aclose())


def _failure(error: Exception, what: str, kind: type[RenderFailedError]) -> RenderFailedError:
    said = " ".join(str(error).split())[:_LENGTH] or type(error).__name__
    if says_out_of_memory(error):
        return OutOfMemoryError(f"{what}: memory ran out ({said}). Close other programs, or take a smaller model")
    return kind(f"{what}: Core AI says: {said}")


def _shapes(inputs: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in inputs.items())

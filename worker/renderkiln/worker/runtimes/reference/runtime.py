"""The reference runtime: a package's ML program, or its pipeline of them, behind the face of every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch

from renderkiln.schema.errors import ModelLoadError, PredictionError, UnsupportedOpError

from ..base import Array, Shape, TensorInfo
from ..checks import check_inputs
from ..mlpackage import Package, open_package
from .decode import decode_constants
from .fuse import fuse
from .graph import read_function
from .interface import Feature, compare, features
from .program import Program, prepare
from .weights import WeightFile

Arithmetic = Literal["float32", "float16"]
#: The sets of operations that are known here, by the name that a program's block has.
_OPSETS = ("CoreML5", "CoreML6", "CoreML7", "CoreML8")
_TORCH = {"float16": torch.float16, "float32": torch.float32, "int32": torch.int32}


class ReferenceRuntime:
    """One model of a package, evaluated by torch on the CPU. May be called from several threads."""

    def __init__(self, inputs: dict[str, Feature], outputs: dict[str, TensorInfo], parts: tuple[_Part, ...]) -> None:
        """Use `load`."""
        self._inputs, self._parts = inputs, parts
        self._input_infos = MappingProxyType({name: feature.info for name, feature in inputs.items()})
        self._outputs = MappingProxyType(outputs)

    @classmethod
    def load(
        cls, path: Path, *, arithmetic: Arithmetic = "float32", function: str | None = None, fuse: bool = True
    ) -> ReferenceRuntime:
        """Opens a package and prepares its model.

        Args:
            path: of the `.mlpackage` folder.
            arithmetic: `float32` holds what is declared half precision in single precision, and rounds nothing between
                operations; `float16` rounds each such value, as a device with half precision would.
            function: which function, where a model has several; otherwise its default.
            fuse: whether patterns of operations, such as a decomposed group norm, are evaluated by one kernel. Means
                the same; only `float32` does it.

        Raises:
            ModelLoadError: the package is not complete, does not parse, or does not hold together.
            UnsupportedOpError: it holds an operation, or something about one, that is not known here.
        """
        if arithmetic not in ("float32", "float16"):
            raise ValueError(f"arithmetic is float32 or float16, not {arithmetic!r}")
        loader = _Loader(open_package(path), arithmetic == "float16", fuse)
        try:
            return loader.load(function)
        except ModelLoadError as error:
            raise type(error)(f"{path}: {error}") from error

    @property
    def inputs(self) -> Mapping[str, TensorInfo]:
        """What `predict` takes, by name. An input whose shape may lie in a range has no shapes listed."""
        return self._input_infos

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        """What `predict` gives, by name."""
        return self._outputs

    @property
    def peak_values(self) -> int:
        """The largest number of values that are held at one time, inputs included and constants not."""
        return max(part.program.peak_values for part in self._parts)

    def predict(self, inputs: Mapping[str, Array], *, constants: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Runs the model once.

        Args:
            inputs: an array for each of `inputs`, of its dtype and of one of its shapes.
            constants: taken, for this run, in place of the model's constants of these names, of the same shapes and
                dtypes: what would come out if this weight were another?

        Returns:
            An array for each of `outputs`, of its dtype; none shares memory with an input.

        Raises:
            PredictionError: an input or a constant is missing, unknown, or does not fit; or the model cannot be
                evaluated.
        """
        check_inputs("the model", self._inputs, inputs)
        if constants and len(self._parts) > 1:
            raise PredictionError("a pipeline's constants cannot be replaced: its models may have some of one name")
        pool: dict[str, Array] = dict(inputs)
        for part in self._parts:
            pool.update(part.predict({name: pool[name] for name in part.inputs}, constants or {}))
        return {name: pool[name] for name in self._outputs}


class _Part:
    """One program, with the description of its inputs and outputs."""

    def __init__(self, inputs: dict[str, Feature], outputs: dict[str, Feature], program: Program) -> None:
        self.inputs, self.outputs, self.program = inputs, outputs, program
        #: The shapes of inputs with which every value was found to be as declared.
        self._checked: set[tuple[Shape, ...]] = set()

    def predict(self, inputs: Mapping[str, Array], constants: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs("the model", self.inputs, inputs)
        replaced = {name: self._constant(name, array) for name, array in constants.items()}
        shapes = tuple(tuple(inputs[name].shape) for name in self.inputs)
        with torch.inference_mode():
            tensors = {name: _tensor(array) for name, array in inputs.items()}
            results = self.program.run(tensors, check=shapes not in self._checked, constants=replaced)
            self._checked.add(shapes)
            # A copy each: a result may be a view of an input, of a constant, or of another result.
            arrays = {
                name: results[name].to(_TORCH[feature.info.dtype], copy=True).contiguous().numpy()
                for name, feature in self.outputs.items()
            }
        for name, feature in self.outputs.items():
            wrong = feature.complaint(arrays[name])
            if wrong is not None:
                raise PredictionError(f"the model's output is not what it declares: {wrong}")
        return arrays

    def _constant(self, name: str, array: Array) -> torch.Tensor:
        """What takes a constant's place."""
        slot = self.program.constant_slots.get(name)
        if slot is None:
            raise PredictionError(f"the model has no constant {name!r} that an operation is called with")
        value, before = _tensor(array), self.program.slots[slot]
        if value.shape != before.shape or value.dtype != before.dtype:
            raise PredictionError(
                f"the constant {name} is {before.dtype} {tuple(before.shape)}; "
                f"{value.dtype} {tuple(value.shape)} cannot take its place"
            )
        return value


def _tensor(array: Array) -> torch.Tensor:
    """The array as the torch tensor that carries it. Shares memory with it; nothing here writes to it."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="), copy=True)
    return torch.from_numpy(array)


class _Loader:
    """Loads the models of one package."""

    def __init__(self, package: Package, rounds: bool, fuse: bool) -> None:
        self.package, self.rounds, self.fuse = package, rounds, fuse
        self._files: dict[str, WeightFile] = {}

    def load(self, function: str | None) -> ReferenceRuntime:
        spec = self.package.read_spec()
        kind = spec.WhichOneof("Type")
        if kind == "mlProgram":
            part = self._part(spec, function)
            return ReferenceRuntime(part.inputs, {name: f.info for name, f in part.outputs.items()}, (part,))
        if kind == "pipeline":
            if function is not None:
                raise ModelLoadError(f"a pipeline of models has no function {function!r}")
            return self._pipeline(spec)
        raise UnsupportedOpError(f"the model is a {kind}; only ML programs and pipelines of them are known here")

    def _pipeline(self, spec: Any) -> ReferenceRuntime:
        """A pipeline's models run one after another; each takes what the pipeline is given and those before it gave."""
        inputs = features(spec.description.input, "input")
        wanted = features(spec.description.output, "output")
        known = dict(inputs)
        parts = []
        for position, model in enumerate(spec.pipeline.models):
            kind = model.WhichOneof("Type")
            if kind != "mlProgram":
                raise UnsupportedOpError(f"model {position} of the pipeline is a {kind}, not an ML program")
            part = self._part(model, None)
            for name, feature in part.inputs.items():
                if name not in known:
                    raise ModelLoadError(f"model {position} of the pipeline takes {name}, which nothing gives it")
                if known[name].info.dtype != feature.info.dtype:
                    raise ModelLoadError(
                        f"model {position} of the pipeline takes {name} as {feature.info.dtype}, "
                        f"and is given {known[name].info.dtype}"
                    )
            known.update(part.outputs)
            parts.append(part)
        outputs = {}
        for name, feature in wanted.items():
            if name not in known or known[name].info.dtype != feature.info.dtype:
                raise ModelLoadError(f"no model of the pipeline gives {name} as {feature.info.dtype}")
            outputs[name] = known[name].info
        if not parts:
            raise ModelLoadError("the pipeline holds no model")
        return ReferenceRuntime(inputs, outputs, tuple(parts))

    def _part(self, spec: Any, function: str | None) -> _Part:
        description = spec.description
        described = {each.name: each for each in description.functions}
        name = function or description.defaultFunctionName or "main"
        if described:
            if name not in described:
                raise ModelLoadError(f"the model has no function {name!r}; it has: {', '.join(sorted(described))}")
            description = described[name]
        if description.state:
            raise UnsupportedOpError("the model keeps state between calls; that is not known here")
        graph = read_function(spec.mlProgram, name, self._file)
        if graph.opset not in _OPSETS:
            raise UnsupportedOpError(
                f"the function {name} uses the opset {graph.opset}; known are {', '.join(_OPSETS)}"
            )
        inputs, outputs = features(description.input, "input"), features(description.output, "output")
        types = graph.type_of()
        if set(inputs) != set(graph.inputs) or set(outputs) != set(graph.outputs):
            raise ModelLoadError(f"the inputs or outputs of the function {name} are not those that are described")
        for each, feature in inputs.items():
            compare(feature, types[each], "input")
        for each, feature in outputs.items():
            compare(feature, types[each], "output")
        decode_constants(graph)
        if self.fuse and not self.rounds:
            fuse(graph)
        return _Part(inputs, outputs, prepare(graph, rounds=self.rounds))

    def _file(self, name: str) -> WeightFile:
        if name not in self._files:
            self._files[name] = WeightFile(self.package.resolve(name))
        return self._files[name]

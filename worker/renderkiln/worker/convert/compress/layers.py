"""Finds the weights of an ML program that compression may touch.

These are the constants of at least two dimensions and 2,048 elements that a convolution or a matrix product multiplies
with. Left alone are embedding tables (they are looked up, not multiplied; Apple's converter leaves them alone, too),
norms, biases, masks and whatever is compressed already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from renderkiln.schema.errors import BadInputError, ModelLoadError

from ...runtimes.mlpackage import Package

#: A weight of fewer elements is not worth its palette (coremltools' own bound).
LEAST_ELEMENTS = 2048
#: The inputs of an operation that are weights.
_WEIGHT_INPUTS = {
    "conv": ("weight",),
    "conv_transpose": ("weight",),
    "linear": ("weight",),
    "matmul": ("x", "y"),
    "einsum": ("values",),
}
#: Specification version of packages made for macOS 15 and iOS 18.
MACOS_15 = 9


@dataclass(frozen=True)
class Layer:
    """One weight that can be compressed."""

    name: str
    shape: tuple[int, ...]
    #: Bytes of an element as it is: 2 or 4.
    itemsize: int

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))

    @property
    def dense_bytes(self) -> int:
        return self.elements * self.itemsize


def load_program(package: Package) -> Any:
    """The package's ML program with all its weights in memory, as coremltools reads it.

    Raises:
        BadInputError: it is another kind of model than one ML program.
        ModelLoadError: it, or its weights, cannot be read.
    """
    spec = package.read_spec()
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        hint = " Compress the models that it is made of." if "ipeline" in kind else ""
        raise BadInputError(f"{package.path} is a {kind}; only ML programs can be compressed.{hint}")
    if len(spec.mlProgram.functions) != 1:
        names = ", ".join(sorted(spec.mlProgram.functions))
        raise BadInputError(f"{package.path} holds several functions ({names}); coremltools compresses only one")
    from coremltools.converters.mil.frontend.milproto.load import load

    try:
        return load(
            spec,
            specification_version=spec.specificationVersion,
            file_weights_dir=str(weights_folder(package)),
        )
    except Exception as error:  # whatever coremltools and its C++ reader raise on a damaged file
        raise ModelLoadError(f"{package.path} cannot be read, its weights may be truncated: {error}") from error


def weights_folder(package: Package) -> Path:
    """The folder of its weight files; may not exist."""
    return package.spec_path.parent / "weights"


def find_layers(program: Any) -> dict[str, NDArray[Any]]:
    """The weights that can be compressed, by name, in the program's order.

    Raises:
        ModelLoadError: one of them holds NaN or an infinity, which no palette can stand for.
    """
    found: dict[str, NDArray[Any]] = {}
    for function in program.functions.values():
        for operation in _operations(function):
            if operation.op_type == "const" and _is_weight(operation):
                found[operation.name] = operation.outputs[0].val
    for name, weight in found.items():
        if not np.isfinite(weight).all():
            raise ModelLoadError(f"the weight {name} holds NaN or infinite values; convert the model again")
    return found


def _operations(block: Any) -> Iterator[Any]:
    for operation in block.operations:
        for inner in operation.blocks:
            yield from _operations(inner)
        yield operation


def _is_weight(constant: Any) -> bool:
    value = constant.outputs[0].val
    if not isinstance(value, np.ndarray) or value.dtype not in (np.float16, np.float32):
        return False
    if value.ndim < 2 or value.size <= LEAST_ELEMENTS:
        return False
    users = constant.outputs[0].child_ops
    return bool(users) and all(_multiplies_with(user, constant.outputs[0]) for user in users)


def _multiplies_with(user: Any, variable: Any) -> bool:
    for name, value in user.inputs.items():
        held = value if isinstance(value, (list, tuple)) else (value,)
        if any(each is variable for each in held) and name not in _WEIGHT_INPUTS.get(user.op_type, ()):
            return False
    return user.op_type in _WEIGHT_INPUTS

"""Finds the weights of an ML program that compression may touch.

These are the constants of at least two dimensions and 2,048 elements that a convolution or a matrix product multiplies
with. Left alone are embedding tables (they are looked up, not multiplied; Apple's converter leaves them alone, too),
norms, biases, masks and whatever is compressed already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from numpy.typing import NDArray

from renderkiln.schema.errors import BadInputError

from ...runtimes.mlpackage import Package
from ...runtimes.reference.graph import Graph, Node, read_function
from ...runtimes.reference.weights import Constant, WeightFile

#: A weight of no more elements is not worth its palette (coremltools' own bound).
LEAST_ELEMENTS = 2048
#: The inputs of an operation that are weights.
_WEIGHT_INPUTS = {
    "conv": ("weight",),
    "conv_transpose": ("weight",),
    "linear": ("weight",),
    "matmul": ("x", "y"),
    "einsum": ("values",),
}
_ITEMSIZE = {"fp16": 2, "fp32": 4}


@dataclass(frozen=True)
class Layer:
    """One weight that can be compressed; it stays in its file until `weight` is asked for."""

    name: str
    shape: tuple[int, ...]
    #: Bytes of an element as it is: 2 or 4.
    itemsize: int
    _constant: Constant

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def dense_bytes(self) -> int:
        return self.elements * self.itemsize

    @property
    def weight(self) -> NDArray[Any]:
        """The weight itself, float16 or float32: a view of the mapped file."""
        values: NDArray[Any] = self._constant.value
        return values


def read_graph(package: Package) -> Graph:
    """The package's ML program; its weights stay in their files.

    Raises:
        BadInputError: it is another kind of model than one ML program with one function.
        ModelLoadError: it cannot be read, or a weight file is truncated.
    """
    spec = package.read_spec()
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        hint = " Compress the models that it is made of." if "ipeline" in kind else ""
        raise BadInputError(f"{package.path} is a {kind}; only ML programs can be compressed.{hint}")
    names = sorted(spec.mlProgram.functions)
    if len(names) != 1:
        raise BadInputError(
            f"{package.path} holds several functions ({', '.join(names)}); coremltools can compress only one"
        )
    return read_function(spec.mlProgram, names[0], lru_cache(lambda name: WeightFile(package.resolve(name))))


def find_layers(graph: Graph) -> dict[str, Layer]:
    """The weights that can be compressed, by name, in the order of their first use."""
    users: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(node.every_input()):
            users.setdefault(name, []).append(node)
    found = {}
    for name, nodes in users.items():
        constant = graph.constants.get(name)
        if constant is None or name in graph.outputs or not all(_multiplies_with(node, name) for node in nodes):
            continue
        shape = constant.type.static_shape
        itemsize = _ITEMSIZE.get(constant.type.dtype)
        # What is no blob stands in the spec itself, too small to count.
        if itemsize and constant.file is not None and len(shape) >= 2 and math.prod(shape) > LEAST_ELEMENTS:
            found[name] = Layer(name, shape, itemsize, constant)
    return found


def _multiplies_with(node: Node, name: str) -> bool:
    weights = _WEIGHT_INPUTS.get(node.type, ())
    return all(parameter in weights for parameter, names in node.inputs.items() if name in names)

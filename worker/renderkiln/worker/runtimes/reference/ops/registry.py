"""The operations by name, and what an operation's builder gets to see of a node.

A builder runs once, at load: it reads the node's constant parameters and gives back a `Bound`, a function over tensors
and the names of the values to call it with. Nothing of the spec is looked at when the model runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from renderkiln.schema.errors import ModelLoadError, UnsupportedOpError

from ..graph import Node
from ..weights import Constant, TensorType

#: Takes tensors (None for an optional one that is absent), gives a tensor, or a tuple for several outputs.
Function = Callable[..., Any]


@dataclass(frozen=True)
class Bound:
    """A prepared operation."""

    function: Function
    #: The values to call it with, by name.
    arguments: tuple[str | None, ...]
    #: Whether every element of the results is one of an argument's, so that there is nothing to round.
    moves: bool = False


Builder = Callable[["Call"], Bound]
BuilderT = TypeVar("BuilderT", bound=Builder)
#: By the name that Core ML has for the operation.
BUILDERS: dict[str, Builder] = {}
#: By our name for what several operations are fused into; apart, so that no model can ask for them.
FUSED: dict[str, Builder] = {}
_REQUIRED: Any = object()

#: The torch type that carries a declared type. Half precision is computed in single precision, and rounded if asked
#: for; torch has next to no kernels for unsigned types above 8 bits, so that the next wider signed one carries them.
TORCH = {
    "fp16": torch.float32,
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,
    "int32": torch.int32,
    "uint32": torch.int64,
    "int64": torch.int64,
    "bool": torch.bool,
}


def op(*names: str, fused: bool = False) -> Callable[[BuilderT], BuilderT]:
    """Registers a builder under the names of its operations."""
    known = FUSED if fused else BUILDERS

    def register(builder: BuilderT) -> BuilderT:
        for name in names:
            if name in known:
                raise AssertionError(f"{name} is registered twice")
            known[name] = builder
        return builder

    return register


class Call:
    """One node, as its builder sees it. Remembers which parameters were looked at: an unknown one is an error."""

    def __init__(self, node: Node, constants: Mapping[str, Constant], types: Mapping[str, TensorType]) -> None:
        self.node = node
        self._constants = constants
        self._types = types
        self._seen: set[str] = set()

    def build(self) -> Bound:
        """The prepared operation.

        Raises:
            UnsupportedOpError: the operation is not known here, or has a parameter or a value that is not.
        """
        known = FUSED if self.node.fused else BUILDERS
        if self.node.type not in known:
            raise UnsupportedOpError(
                f"{self.node.where}: the operation {self.node.type} is not known to the reference runtime"
            )
        bound = known[self.node.type](self)
        rest = [name for name in self.node.inputs if name not in self._seen]
        if rest:
            raise self.unsupported(f"its parameter {rest[0]} is not known here")
        return bound

    def bind(self, function: Function, *parameters: str, moves: bool = False) -> Bound:
        """The function over the values of these parameters; `?name` may be absent, `*name` is a list of values."""
        arguments: list[str | None] = []
        for parameter in parameters:
            if parameter.startswith("*"):
                arguments.extend(self.names(parameter[1:]))
            elif parameter.startswith("?"):
                arguments.append(self.name(parameter[1:]) if self.has(parameter[1:]) else None)
            else:
                arguments.append(self.name(parameter))
        return Bound(function, tuple(arguments), moves)

    def has(self, parameter: str) -> bool:
        self._seen.add(parameter)
        return parameter in self.node.inputs

    def names(self, parameter: str) -> tuple[str, ...]:
        if not self.has(parameter):
            raise ModelLoadError(f"{self.node.where} ({self.node.type}): its parameter {parameter} is missing")
        return self.node.inputs[parameter]

    def name(self, parameter: str) -> str:
        names = self.names(parameter)
        if len(names) != 1:
            raise ModelLoadError(
                f"{self.node.where} ({self.node.type}): {parameter} holds {len(names)} values, not one"
            )
        return names[0]

    def type(self, parameter: str) -> TensorType:
        """The declared type of a parameter's value."""
        return self._types[self.name(parameter)]

    def rank(self, parameter: str) -> int:
        """The declared rank of a parameter's value."""
        shape = self.type(parameter).shape
        if shape is None:
            raise self.unsupported(f"the rank of {parameter} is not declared")
        return len(shape)

    def rank_of(self, name: str) -> int:
        """The declared rank of a value."""
        shape = self._types[name].shape
        if shape is None:
            raise self.unsupported(f"the rank of {name} is not declared")
        return len(shape)

    def each(self, parameter: str) -> list[Any]:
        """The constants of a parameter that holds a list of them."""
        names = self.names(parameter)
        if any(name not in self._constants for name in names):
            raise self.unsupported(f"its parameter {parameter} is computed, which is only known here for a constant")
        return [self._constants[name].value for name in names]

    def is_constant(self, parameter: str) -> bool:
        return self.has(parameter) and all(name in self._constants for name in self.names(parameter))

    def constant(self, parameter: str, default: Any = _REQUIRED) -> Any:
        """The value of a parameter that must be constant: a numpy array, or a str."""
        if not self.has(parameter):
            if default is _REQUIRED:
                raise ModelLoadError(f"{self.node.where} ({self.node.type}): its parameter {parameter} is missing")
            return default
        name = self.name(parameter)
        if name not in self._constants:
            raise self.unsupported(f"its parameter {parameter} is computed, which is only known here for a constant")
        return self._constants[name].value

    def integer(self, parameter: str, default: Any = _REQUIRED) -> int:
        return int(np.asarray(self.constant(parameter, default)).item())

    def number(self, parameter: str, default: Any = _REQUIRED) -> float:
        return float(np.asarray(self.constant(parameter, default)).item())

    def flag(self, parameter: str, default: Any = _REQUIRED) -> bool:
        return bool(np.asarray(self.constant(parameter, default)).item())

    def integers(self, parameter: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        return tuple(int(each) for each in np.asarray(self.constant(parameter, default)).reshape(-1))

    def flags(self, parameter: str, default: Any = _REQUIRED) -> tuple[bool, ...]:
        return tuple(bool(each) for each in np.asarray(self.constant(parameter, default)).reshape(-1))

    def text(self, parameter: str, default: Any = _REQUIRED, *, known: tuple[str, ...] = ()) -> str:
        """A parameter that is a word; with `known`, one of these."""
        value = self.constant(parameter, default)
        if not isinstance(value, str) or (known and value not in known):
            raise self.unsupported(f"its {parameter} is {value!r}; known are {', '.join(known)}")
        return value

    def axis(self, parameter: str, default: Any = _REQUIRED, *, of: str = "x") -> int:
        """An axis of the value of `of`, from 0."""
        return self.normal_axis(self.integer(parameter, default), self.rank(of))

    def axes(self, parameter: str, default: Any = _REQUIRED, *, of: str = "x") -> tuple[int, ...]:
        rank = self.rank(of)
        return tuple(self.normal_axis(axis, rank) for axis in self.integers(parameter, default))

    def normal_axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < max(rank, 1):
            raise ModelLoadError(f"{self.node.where} ({self.node.type}): there is no axis {axis} of {rank}")
        return axis % rank if rank else 0

    def unsupported(self, what: str) -> UnsupportedOpError:
        return UnsupportedOpError(f"{self.node.where}: the operation {self.node.type}: {what}")

    @property
    def output(self) -> TensorType:
        """The declared type of the first output."""
        return self.node.outputs[0].type

    def refuse_integers(self, parameter: str = "x") -> None:
        """For operations whose meaning on integers Core ML does not tell."""
        if self.type(parameter).dtype not in ("fp16", "fp32"):
            raise self.unsupported(f"it is only known here on floating point, not on {self.type(parameter).dtype}")


def half(value: Any) -> Any:
    """Rounded as half precision would give it; beyond 65504 it is infinite."""
    return value.to(torch.float16).to(torch.float32)


def tensor(constant: Constant, *, rounds: bool = False) -> torch.Tensor:
    """A constant as the torch tensor that carries it; shares memory with the weight file where the type allows it.

    With `rounds`, what is declared half precision and was decoded in single precision is rounded.
    """
    array = np.asarray(constant.value)
    if rounds and constant.type.dtype == "fp16" and array.dtype != np.float16:
        return half(torch.from_numpy(array))
    target = TORCH.get(constant.type.dtype)
    if target is None:  # less than a byte
        target = torch.int8 if constant.type.dtype.startswith("int") else torch.uint8
    if array.dtype == np.uint16:
        return torch.from_numpy(array.astype(np.int32))
    if array.dtype == np.uint32:
        return torch.from_numpy(array.astype(np.int64))
    if not array.flags.writeable:
        array = array.copy()
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return torch.from_numpy(array).to(target)


def scalars(value: torch.Tensor) -> list[int]:
    """A tensor of sizes or indices as Python numbers."""
    return [int(each) for each in value.reshape(-1).tolist()]


def product(sizes: Any) -> int:
    return math.prod(int(size) for size in sizes)

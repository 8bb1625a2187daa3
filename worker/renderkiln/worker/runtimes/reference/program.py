"""Prepares a function for running: every operation a closure, every value a slot, every slot freed after its last use.

All that can be known before the model runs is worked out here: constants become tensors, parameters are read, names
become positions in a list. Running is a loop over steps that looks at nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from renderkiln.schema.errors import ModelLoadError, PredictionError, RenderkilnError

from . import ops
from .graph import Graph, Value
from .ops.registry import TORCH, Bound, Call, Function, half, tensor
from .weights import Constant, TensorType

__all__ = ["Program", "Step", "prepare"]


@dataclass(frozen=True)
class Step:
    """One prepared operation."""

    function: Function
    #: The slots to call it with; slot 0 always holds None.
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    #: The slots that nothing reads after this step.
    frees: tuple[int, ...]
    outputs: tuple[Value, ...]
    #: For messages.
    label: str


@dataclass(frozen=True)
class Program:
    """A function, ready to run."""

    inputs: dict[str, TensorType]
    #: The names of what it gives, with their declared types and slots.
    outputs: dict[str, tuple[TensorType, int]]
    steps: tuple[Step, ...]
    #: The slots before the first step: constants in place, the rest None.
    slots: tuple[Any, ...]
    input_slots: dict[str, int]
    #: Where the constants that operations are called with lie, by name.
    constant_slots: dict[str, int]
    #: Input slots that no step reads.
    unread: tuple[int, ...]
    #: The largest number of values, inputs included and constants not, that are held at one time.
    peak_values: int

    def run(
        self,
        inputs: dict[str, torch.Tensor],
        check: bool = False,
        constants: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> dict[str, torch.Tensor]:
        """Evaluates the function.

        Args:
            inputs: a tensor for each input, in the type that carries its declared one.
            check: whether to compare each value's shape and type with what the spec declares.
            constants: taken, for this run, in place of the constants of these names.

        Returns:
            A tensor for each output; it may share memory with an input or a constant.

        Raises:
            PredictionError: an operation cannot be evaluated on what it is given, or gives what was not declared.
        """
        slots = list(self.slots)
        for name, slot in self.input_slots.items():
            slots[slot] = inputs[name]
        for name, value in constants.items():
            slots[self.constant_slots[name]] = value
        for slot in self.unread:
            slots[slot] = None
        for step in self.steps:
            arguments = [slots[slot] for slot in step.takes]
            try:
                result = step.function(*arguments)
            except RenderkilnError:
                raise
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                shapes = ", ".join(str(tuple(each.shape)) for each in arguments if each is not None)
                raise PredictionError(f"{step.label} cannot be evaluated on {shapes}: {error}") from error
            if check:
                _check(step, result)
            # Before the values are stored: an argument that is also overwritten would live on in this list.
            del arguments
            if len(step.gives) == 1:
                slots[step.gives[0]] = result
            else:
                for slot, value in zip(step.gives, result, strict=True):
                    slots[slot] = value
            del result
            for slot in step.frees:
                slots[slot] = None
        return {name: slots[slot] for name, (_, slot) in self.outputs.items()}


def _check(step: Step, result: Any) -> None:
    values = (result,) if len(step.gives) == 1 else tuple(result)
    if len(values) != len(step.outputs):
        raise PredictionError(f"{step.label} gives {len(values)} values where {len(step.outputs)} are declared")
    for value, declared in zip(values, step.outputs, strict=True):
        if value.dtype != TORCH[declared.type.dtype]:
            raise PredictionError(f"{step.label} gives {value.dtype} where {declared.type} is declared")
        shape = declared.type.shape
        if shape is None:
            continue
        fits = len(shape) == value.dim() and all(
            size is None or size == got for size, got in zip(shape, value.shape, strict=True)
        )
        if not fits:
            raise PredictionError(f"{step.label} gives {tuple(value.shape)} where {declared.type} is declared")


class _Slots:
    """Hands out slots; a slot that was freed is handed out again."""

    def __init__(self) -> None:
        self.values: list[Any] = [None]
        self.of: dict[str, int] = {}
        self._free: list[int] = []
        self.live = 0
        self.peak = 0

    def constant(self, name: str, value: Any) -> int:
        self.values.append(value)
        self.of[name] = len(self.values) - 1
        return self.of[name]

    def take(self, name: str) -> int:
        if self._free:
            slot = self._free.pop()
        else:
            self.values.append(None)
            slot = len(self.values) - 1
        self.of[name] = slot
        self.live += 1
        self.peak = max(self.peak, self.live)
        return slot

    def free(self, name: str) -> int:
        slot = self.of[name]
        self._free.append(slot)
        self.live -= 1
        return slot


def prepare(graph: Graph, *, rounds: bool) -> Program:
    """The graph, ready to run.

    Args:
        graph: with its compressed constants decoded and its patterns fused.
        rounds: whether every value that is declared half precision is rounded to it.

    Raises:
        UnsupportedOpError: an operation, or something about one, is not known here.
        ModelLoadError: the model does not hold together.
    """
    assert ops.BUILDERS
    types = graph.type_of()
    for name, type_ in graph.inputs.items():
        if type_.dtype not in TORCH:
            raise ModelLoadError(f"the input {name} is {type_.dtype}, which no input can be")
    bounds = [Call(node, graph.constants, types).build() for node in graph.nodes]
    last = _last_uses(graph, bounds)
    slots = _Slots()
    input_slots = {name: slots.take(name) for name in graph.inputs}
    unread = tuple(slots.free(name) for name in graph.inputs if name not in last)
    steps: list[Step] = []
    for position, (node, bound) in enumerate(zip(graph.nodes, bounds, strict=True)):
        for argument in bound.arguments:
            if argument is not None and argument not in slots.of:
                slots.constant(argument, _constant(graph.constants[argument], rounds))
        takes = tuple(0 if name is None else slots.of[name] for name in bound.arguments)
        # A result's slot is taken before the arguments' are freed: both are held while the operation runs.
        gives = tuple(slots.take(output.name) for output in node.outputs)
        used = dict.fromkeys([name for name in bound.arguments if name is not None] + [v.name for v in node.outputs])
        gone = [name for name in used if last.get(name, position) == position and name not in graph.constants]
        function = _rounded(bound, node.outputs) if rounds and not bound.moves else bound.function
        label = f"{node.where} ({node.type})"
        steps.append(Step(function, takes, gives, tuple(slots.free(name) for name in gone), node.outputs, label))
    for name in graph.outputs:
        if name not in slots.of:
            slots.constant(name, _constant(graph.constants[name], rounds))
    _forget(graph)
    return Program(
        inputs=graph.inputs,
        outputs={name: (types[name], slots.of[name]) for name in graph.outputs},
        steps=tuple(steps),
        slots=tuple(slots.values),
        input_slots=input_slots,
        constant_slots={name: slots.of[name] for name in graph.constants if name in slots.of},
        unread=unread,
        peak_values=slots.peak,
    )


def _last_uses(graph: Graph, bounds: Sequence[Bound]) -> dict[str, int]:
    """The last step that reads each value; one past the end for outputs."""
    last: dict[str, int] = {}
    for position, bound in enumerate(bounds):
        for name in bound.arguments:
            if name is not None:
                last[name] = position
    last.update(dict.fromkeys(graph.outputs, len(bounds)))
    return last


def _constant(constant: Constant, rounds: bool) -> torch.Tensor:
    value = tensor(constant, rounds=rounds)
    constant.forget()
    if constant.file is not None:
        constant.file.forget_pages()
    return value


def _forget(graph: Graph) -> None:
    """Drops what was read of parameters: the closures hold what they need."""
    for constant in graph.constants.values():
        constant.forget()


def _rounded(bound: Bound, outputs: tuple[Value, ...]) -> Function:
    """The operation, its results rounded where they are declared half precision."""
    function = bound.function
    halves = [output.type.dtype == "fp16" for output in outputs]
    if not any(halves):
        return function
    if len(outputs) == 1:
        return lambda *arguments: half(function(*arguments))

    def several(*arguments: Any) -> tuple[Any, ...]:
        results = function(*arguments)
        return tuple(half(each) if is_half else each for each, is_half in zip(results, halves, strict=True))

    return several

"""A function of an ML program as plain data: nodes over named values, out of the spec's messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from renderkiln.schema.errors import ModelLoadError, UnsupportedOpError

from .weights import NUMPY, TYPES, Constant, TensorType, WeightFile, immediate

#: Opens the weight file of that name, once.
Files = Callable[[str], WeightFile]


@dataclass(frozen=True)
class Value:
    """A named value that a node makes."""

    name: str
    type: TensorType


@dataclass
class Node:
    """One operation."""

    type: str
    #: Parameter name to the names of the values bound to it: one, or for lists such as `concat`'s `values` several.
    inputs: dict[str, tuple[str, ...]]
    outputs: tuple[Value, ...]
    #: For messages: which function and operation this is.
    where: str
    #: Whether it stands for several operations of the model, put together at load; `type` is one of ours then.
    fused: bool = False

    def every_input(self) -> list[str]:
        return [name for names in self.inputs.values() for name in names]


@dataclass
class Graph:
    """One function: what it takes, what it computes, what it gives."""

    inputs: dict[str, TensorType]
    nodes: list[Node]
    outputs: tuple[str, ...]
    opset: str
    constants: dict[str, Constant] = field(default_factory=dict)

    def type_of(self) -> dict[str, TensorType]:
        """The declared type of every value by name."""
        types = dict(self.inputs)
        types.update({name: constant.type for name, constant in self.constants.items()})
        types.update({value.name: value.type for node in self.nodes for value in node.outputs})
        return types

    def uses(self) -> dict[str, int]:
        """How often each value is read, by nodes or as an output."""
        counts: dict[str, int] = dict.fromkeys(self.outputs, 1)
        for node in self.nodes:
            for name in node.every_input():
                counts[name] = counts.get(name, 0) + 1
        return counts


def read_function(program: Any, name: str, files: Files) -> Graph:
    """A function of a `MIL_pb2.Program`.

    Raises:
        ModelLoadError: there is no such function, or it does not hold together.
        UnsupportedOpError: it holds something that is not known here.
    """
    if name not in program.functions:
        raise ModelLoadError(f"no function {name!r} in the model; there are: {', '.join(sorted(program.functions))}")
    function = program.functions[name]
    if function.opset not in function.block_specializations:
        raise ModelLoadError(f"function {name}: there is no block for its opset, {function.opset}")
    block = function.block_specializations[function.opset]
    graph = Graph(
        inputs={each.name: tensor_type(each.type, each.name) for each in function.inputs},
        nodes=[],
        outputs=tuple(block.outputs),
        opset=function.opset,
    )
    known = set(graph.inputs)
    for operation in block.operations:
        where = f"{name}/{_label(operation)}"
        node = _read_operation(operation, where, graph, files)
        made = [each.name for each in operation.outputs]
        if node is not None:
            unknown = [each for each in node.every_input() if each not in known and each not in graph.constants]
            if unknown:
                raise ModelLoadError(f"{where} ({operation.type}) reads {unknown[0]}, which nothing before it makes")
            graph.nodes.append(node)
        twice = [each for each in made if each in known]
        if twice:
            raise ModelLoadError(f"{where} ({operation.type}) makes {twice[0]}, which is made already")
        known.update(made)
    missing = [each for each in graph.outputs if each not in known]
    if missing:
        raise ModelLoadError(f"function {name}: its output {missing[0]} is made by no operation")
    return graph


def _label(operation: Any) -> str:
    return str(operation.outputs[0].name) if operation.outputs else str(operation.type)


def _read_operation(operation: Any, where: str, graph: Graph, files: Files) -> Node | None:
    """The node; or None for a `const`, which goes to the graph's constants."""
    if operation.blocks:
        raise UnsupportedOpError(f"{where}: the operation {operation.type} holds nested blocks; that is not known here")
    if operation.type == "const":
        output = operation.outputs[0]
        if "val" not in operation.attributes:
            raise ModelLoadError(f"{where}: a constant without a value")
        graph.constants[output.name] = read_value(operation.attributes["val"], where, files)
        return None
    inputs: dict[str, tuple[str, ...]] = {}
    for parameter, argument in operation.inputs.items():
        names = []
        for position, binding in enumerate(argument.arguments):
            if binding.WhichOneof("binding") == "name":
                names.append(binding.name)
            else:
                names.append(_literal(f"{where}.{parameter}.{position}", binding.value, where, graph, files))
        inputs[parameter] = tuple(names)
    for parameter, value in operation.attributes.items():
        # Old constexpr operations have their parameters here; every operation has a name.
        if parameter != "name":
            inputs[parameter] = (_literal(f"{where}.{parameter}", value, where, graph, files),)
    outputs = tuple(Value(each.name, tensor_type(each.type, where)) for each in operation.outputs)
    return Node(operation.type, inputs, outputs, where)


def _literal(name: str, value: Any, where: str, graph: Graph, files: Files) -> str:
    graph.constants[name] = read_value(value, where, files)
    return name


def tensor_type(type_: Any, name: str) -> TensorType:
    """A `ValueType` that is a tensor.

    Raises:
        UnsupportedOpError: it is no tensor, or of an element type that is not known here.
    """
    kind = type_.WhichOneof("type")
    if kind != "tensorType":
        raise UnsupportedOpError(f"{name} is of kind {kind}; only tensors are known here")
    tensor = type_.tensorType
    if tensor.dataType == 2:
        dtype = "string"
    elif tensor.dataType in TYPES:
        dtype = TYPES[tensor.dataType][0]
    else:
        raise UnsupportedOpError(f"{name} has element type {tensor.dataType}, which is not known here")
    if tensor.rank < 0 or any(each.unknown.variadic for each in tensor.dimensions):
        return TensorType(dtype, None)
    sizes = (each.constant.size if each.WhichOneof("dimension") == "constant" else None for each in tensor.dimensions)
    return TensorType(dtype, tuple(sizes))


def read_value(value: Any, name: str, files: Files) -> Constant:
    """A `Value`: a blob, or what stands in the spec itself. Blobs are looked for now and read on first use."""
    type_ = tensor_type(value.type, name)
    kind = value.WhichOneof("value")
    if kind == "blobFileValue":
        file, offset, shape = files(value.blobFileValue.fileName), value.blobFileValue.offset, type_.static_shape
        if type_.dtype not in NUMPY:
            raise UnsupportedOpError(f"{name}: {type_.dtype} in a weight file is not known here")
        file.record(offset, name)
        return Constant(type_, lambda: file.read(offset, type_.dtype, shape, name), file)
    if kind != "immediateValue" or value.immediateValue.WhichOneof("value") != "tensor":
        raise UnsupportedOpError(f"{name}: a value of kind {kind} that is no tensor is not known here")
    tensor = value.immediateValue.tensor
    return Constant(type_, lambda: immediate(tensor, type_, name))


def shape_of(types: Mapping[str, TensorType], name: str) -> tuple[int, ...] | None:
    """A value's shape, if every size of it is declared."""
    shape = types[name].shape
    if shape is None or any(size is None for size in shape):
        return None
    return tuple(size for size in shape if size is not None)

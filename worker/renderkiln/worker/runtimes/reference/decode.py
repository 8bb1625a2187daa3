"""Decodes compressed constants: the `constexpr_…` operations, whose inputs are all constants.

Each is decoded when its value is first asked for, which is once, at load; what it is decoded from is dropped then.
Quantized values are scaled in single precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from renderkiln.schema.errors import ModelLoadError, UnsupportedOpError

from .graph import Graph, Node
from .weights import BITS, Array, Constant, unpack

#: Gives the values of all outputs of an operation.
Decoder = Callable[["Sources"], tuple[Array, ...]]


class Sources:
    """The constant inputs of one node, by parameter."""

    def __init__(self, node: Node, constants: Mapping[str, Constant]) -> None:
        self.node = node
        self._constants: dict[str, Constant] = {}
        for parameter, names in node.inputs.items():
            if len(names) != 1 or names[0] not in constants:
                raise ModelLoadError(f"{node.where} ({node.type}): its parameter {parameter} is not one constant")
            self._constants[parameter] = constants[names[0]]

    def names(self) -> set[str]:
        return set(self._constants)

    def has(self, parameter: str) -> bool:
        return parameter in self._constants

    def array(self, parameter: str) -> Array:
        return np.asarray(self._constant(parameter).value)

    def text(self, parameter: str) -> str:
        return str(self._constant(parameter).value)

    def bits(self, parameter: str) -> int:
        """Of an element, as declared."""
        return BITS[self._constant(parameter).type.dtype]

    def floats(self, parameter: str) -> Array:
        return self.array(parameter).astype(np.float32)

    def sizes(self, parameter: str) -> tuple[int, ...]:
        return tuple(int(size) for size in self.array(parameter).reshape(-1))

    def forget(self) -> None:
        for constant in self._constants.values():
            constant.forget()

    def wrong(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"{self.node.where} ({self.node.type}): {what}")

    def _constant(self, parameter: str) -> Constant:
        if parameter not in self._constants:
            raise self.wrong(f"its parameter {parameter} is missing")
        return self._constants[parameter]


def _affine(source: Sources) -> tuple[Array, ...]:
    """`scale * (quantized - zero_point)`, both a number, or a vector along an axis."""
    data = source.array("quantized_data")
    axis = int(source.array("axis"))
    if not -data.ndim <= axis < data.ndim:
        raise source.wrong(f"there is no axis {axis} of {data.ndim}")
    sizes = [1] * data.ndim
    sizes[axis] = -1
    scale, zero = source.floats("scale"), source.floats("zero_point")
    scale = scale.reshape(sizes) if scale.ndim else scale
    zero = zero.reshape(sizes) if zero.ndim else zero
    values = data.astype(np.float32)
    values -= zero
    values *= scale
    return (values,)


def _blocks(data: Array, scale: Array, offset: Array | None, source: Sources) -> Array:
    """`scale * (data - offset)`, where each number of `scale` and `offset` is for a block of `data`."""
    if data.ndim != scale.ndim or any(size % count for size, count in zip(data.shape, scale.shape, strict=True)):
        raise source.wrong(f"data of {data.shape} does not fall into blocks of {scale.shape} scales")
    if offset is not None and offset.shape != scale.shape:
        raise source.wrong(f"offsets of {offset.shape} for scales of {scale.shape}")
    # Each axis becomes two, blocks and what is in a block, so that nothing has to be repeated.
    split = [part for size, count in zip(data.shape, scale.shape, strict=True) for part in (count, size // count)]
    spread = [part for count in scale.shape for part in (count, 1)]
    values = data.astype(np.float32).reshape(split)
    if offset is not None:
        values -= offset.astype(np.float32).reshape(spread)
    values *= scale.astype(np.float32).reshape(spread)
    return values.reshape(data.shape)


def _blockwise(source: Sources) -> tuple[Array, ...]:
    offset = source.array("offset") if source.has("offset") else None
    return (_blocks(source.array("data"), source.array("scale"), offset, source),)


def _sparse_blockwise(source: Sources) -> tuple[Array, ...]:
    mask = source.array("data_mask")
    offset = source.array("offset") if source.has("offset") else None
    dense = _blocks(_scatter(source.array("nonzero_data"), mask, source), source.array("scale"), offset, source)
    return mask, dense[mask != 0]


def _look_up(indices: Array, lut: Array, axis: int | None, source: Sources) -> Array:
    """Each index replaced by its entry (a vector of them, laid along `axis`) in the table of its group."""
    if lut.ndim != indices.ndim + 2:
        raise source.wrong(f"a table of rank {lut.ndim} for indices of rank {indices.ndim}")
    groups, width = lut.shape[:-2], lut.shape[-1]
    if any(size % count for size, count in zip(indices.shape, groups, strict=True)):
        raise source.wrong(f"indices of {indices.shape} do not fall into {groups} groups")
    if indices.size and int(indices.max()) >= lut.shape[-2]:
        raise source.wrong(f"an index of {int(indices.max())} in a table of {lut.shape[-2]}")
    values = np.empty((*indices.shape, width), lut.dtype)
    steps = [size // count for size, count in zip(indices.shape, groups, strict=True)]
    for group in np.ndindex(*groups):
        part = tuple(slice(at * step, (at + 1) * step) for at, step in zip(group, steps, strict=True))
        values[part] = lut[group][indices[part]]
    if width == 1:
        return values[..., 0]
    if axis is None:
        raise source.wrong("entries that are vectors, and no vector_axis")
    axis %= indices.ndim
    shape = [size * (width if at == axis else 1) for at, size in enumerate(indices.shape)]
    return np.moveaxis(values, -1, axis + 1).reshape(shape)


def _vector_axis(source: Sources) -> int | None:
    return int(source.array("vector_axis")) if source.has("vector_axis") else None


def _lut(source: Sources) -> tuple[Array, ...]:
    lut = source.array("lut")
    if not source.has("shape"):
        return (_look_up(source.array("indices"), lut, _vector_axis(source), source),)
    # The older form: indices packed into bytes, one table for all.
    shape = source.sizes("shape")
    count, bits = int(np.prod(shape, dtype=np.int64)), int(lut.size).bit_length() - 1
    packed = source.array("indices")
    if lut.ndim != 1 or lut.size not in (2, 4, 16, 64, 256) or packed.size != -(-count * bits // 8):
        raise source.wrong(f"{packed.size} bytes of indices into a table of {lut.size} for {count} values")
    indices = packed if bits == 8 else unpack(packed, bits, count)
    return (lut[indices].reshape(shape),)


def _sparse_lut(source: Sources) -> tuple[Array, ...]:
    mask, axis, lut = source.array("indices_mask"), _vector_axis(source), source.array("lut")
    indices = _scatter(source.array("indices_nonzero_data"), mask, source)
    dense = _look_up(indices, lut, axis, source)
    if lut.shape[-1] > 1 and axis is not None:
        mask = np.repeat(mask, lut.shape[-1], axis=axis)
    return mask, dense[mask != 0]


def _scatter(values: Array, mask: Array, source: Sources) -> Array:
    """The values where the mask is set, row by row, and zeros elsewhere."""
    chosen = mask != 0
    if values.ndim != 1 or int(np.count_nonzero(chosen)) != values.size:
        raise source.wrong(f"{values.size} values for {int(np.count_nonzero(chosen))} places")
    dense = np.zeros(mask.shape, values.dtype)
    dense[chosen] = values
    return dense


def _sparse(source: Sources) -> tuple[Array, ...]:
    mask = source.array("mask")
    if source.has("shape"):
        # The older form: the mask's bits packed into bytes.
        shape = source.sizes("shape")
        count = int(np.prod(shape, dtype=np.int64))
        if mask.size != -(-count // 8):
            raise source.wrong(f"{mask.size} bytes of mask for {count} values")
        mask = unpack(mask.reshape(-1), 1, count).reshape(shape)
    return (_scatter(source.array("nonzero_data"), mask, source),)


def _cast(source: Sources) -> tuple[Array, ...]:
    target = source.text("output_dtype")
    if target != "fp32":
        raise UnsupportedOpError(f"{source.node.where} (constexpr_cast): to {target}; only fp32 is known")
    return (source.floats("source_val"),)


_SHIFT = frozenset({"scale", "offset"})
_LUT = frozenset({"lut", "vector_axis"})
#: The decoders, with all parameters that they know.
_DECODERS: dict[str, tuple[Decoder, frozenset[str]]] = {
    "constexpr_affine_dequantize": (_affine, frozenset({"quantized_data", "zero_point", "scale", "axis"})),
    "constexpr_blockwise_shift_scale": (_blockwise, _SHIFT | {"data"}),
    "constexpr_lut_to_dense": (_lut, _LUT | {"indices", "shape"}),
    "constexpr_sparse_to_dense": (_sparse, frozenset({"nonzero_data", "mask", "shape"})),
    "constexpr_cast": (_cast, frozenset({"source_val", "output_dtype"})),
    "constexpr_lut_to_sparse": (_sparse_lut, _LUT | {"indices_mask", "indices_nonzero_data"}),
    "constexpr_sparse_blockwise_shift_scale": (_sparse_blockwise, _SHIFT | {"data_mask", "nonzero_data"}),
}


def decode_constants(graph: Graph) -> None:
    """Turns the graph's `constexpr_…` nodes into constants; none is decoded yet.

    Raises:
        UnsupportedOpError: one is not known here, or has a parameter that is not.
        ModelLoadError: one does not hold together.
    """
    rest: list[Node] = []
    for node in graph.nodes:
        if not node.type.startswith("constexpr_"):
            rest.append(node)
            continue
        if node.type not in _DECODERS:
            raise UnsupportedOpError(f"{node.where}: the operation {node.type} is not known to the reference runtime")
        decoder, known = _DECODERS[node.type]
        sources = Sources(node, graph.constants)
        unknown = sources.names() - known
        if unknown:
            raise UnsupportedOpError(
                f"{node.where}: the operation {node.type}: its parameter {min(unknown)} is not known here"
            )
        for position, output in enumerate(node.outputs):
            read = partial(_decoded, decoder, sources, position, output.type.static_shape)
            graph.constants[output.name] = Constant(output.type, read)
    graph.nodes = rest


def _decoded(decoder: Decoder, sources: Sources, position: int, shape: Sequence[int]) -> Any:
    values = decoder(sources)
    sources.forget()
    if position >= len(values) or values[position].shape != tuple(shape):
        got = values[position].shape if position < len(values) else "nothing"
        raise sources.wrong(f"its result should be of shape {tuple(shape)}, and is {got}")
    return values[position]

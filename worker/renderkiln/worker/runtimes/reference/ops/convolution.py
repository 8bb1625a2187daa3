"""Convolutions, transposed convolutions, and pooling, in one to three spatial dimensions.

Core ML gives padding as (before, after) for each spatial dimension, the first dimension first; torch's `pad` wants the
last dimension first, and its convolutions the same on both sides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from renderkiln.schema.errors import ModelLoadError

from .registry import Bound, Call, Function, op

_CONV: dict[int, Function] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE: dict[int, Function] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_MAX: dict[int, Function] = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGE: dict[int, Function] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
_PAD_TYPES = ("valid", "custom", "same", "same_lower")
Pads = tuple[int, ...]


def _spatial(call: Call) -> int:
    count = call.rank("x") - 2
    if count not in _CONV:
        raise call.unsupported(f"{count} spatial dimensions")
    return count


def same_pads(sizes: Sequence[int], extents: Sequence[int], strides: Sequence[int], lower: bool) -> Pads:
    """What `same` pads: so much that the output is `ceil(size / stride)` long; the odd one out comes last, or first."""
    pads: list[int] = []
    for size, extent, stride in zip(sizes, extents, strides, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
        small, large = total // 2, total - total // 2
        pads += (large, small) if lower else (small, large)
    return tuple(pads)


def _reversed(pads: Sequence[int]) -> list[int]:
    """(before, after) pairs, the last dimension first, as torch's `pad` wants them."""
    pairs = [tuple(pads[i : i + 2]) for i in range(0, len(pads), 2)]
    return list(itertools.chain.from_iterable(reversed(pairs)))


def _even(pads: Sequence[int]) -> tuple[int, ...] | None:
    """One number for each dimension, where both sides get the same."""
    if all(pads[i] == pads[i + 1] for i in range(0, len(pads), 2)):
        return tuple(pads[::2])
    return None


def _pads(call: Call, count: int) -> Pads:
    pads = call.integers("pad", (0,) * (2 * count))
    if len(pads) != 2 * count:
        raise ModelLoadError(f"{call.node.where} ({call.node.type}): pad holds {len(pads)} numbers, not {2 * count}")
    return pads


def _declared_kernel(call: Call, count: int) -> tuple[int, ...]:
    shape = call.type("weight").shape
    sizes = [] if shape is None else [size for size in shape[2:] if size is not None]
    if len(sizes) != count:
        raise call.unsupported("the size of its kernel is not declared")
    return tuple(sizes)


@op("conv")
def conv(call: Call) -> Bound:
    count = _spatial(call)
    strides = call.integers("strides", (1,) * count)
    dilations = call.integers("dilations", (1,) * count)
    groups = call.integer("groups", 1)
    kind = call.text("pad_type", "valid", known=_PAD_TYPES)
    pads = _pads(call, count)
    convolve = _CONV[count]
    if kind.startswith("same"):
        kernel = _declared_kernel(call, count)
        extents = tuple((size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True))
        lower = kind == "same_lower"

        def padded_same(x: Any, weight: Any, bias: Any) -> Any:
            x = functional.pad(x, _reversed(same_pads(x.shape[2:], extents, strides, lower)))
            return convolve(x, weight, bias, strides, 0, dilations, groups)

        return call.bind(padded_same, "x", "weight", "?bias")
    padding = (0,) * count if kind == "valid" else _even(pads)
    if padding is not None:
        return call.bind(
            # Turned values, channels last, would make torch copy the weights into that order at each call.
            lambda x, weight, bias: convolve(x.contiguous(), weight, bias, strides, padding, dilations, groups),
            "x",
            "weight",
            "?bias",
        )
    uneven = _reversed(pads)
    return call.bind(
        lambda x, weight, bias: convolve(functional.pad(x, uneven), weight, bias, strides, 0, dilations, groups),
        "x",
        "weight",
        "?bias",
    )


@op("conv_transpose")
def conv_transpose(call: Call) -> Bound:
    """The whole transposed convolution, cropped by `pad` on each side. `same` is underdetermined: not known here."""
    count = _spatial(call)
    strides = call.integers("strides", (1,) * count)
    dilations = call.integers("dilations", (1,) * count)
    groups = call.integer("groups", 1)
    kind = call.text("pad_type", "valid", known=("valid", "custom"))
    pads = _pads(call, count) if kind == "custom" else (_pads(call, count), (0,) * (2 * count))[1]
    target = call.integers("output_shape")[2:] if call.has("output_shape") else None
    transpose = _CONV_TRANSPOSE[count]

    def convolve(x: Any, weight: Any, bias: Any) -> Any:
        # Uncropped first. What an output shape asks for beyond it is what no input reaches: the bias alone.
        y = transpose(x, weight, None, strides, 0, 0, groups, dilations)
        crop = [slice(None), slice(None)]
        for axis in range(count):
            full, before, after = y.shape[axis + 2], pads[2 * axis], pads[2 * axis + 1]
            size = full - before - after if target is None else target[axis]
            short = before + size - full
            if short > 0:
                y = functional.pad(y, _reversed([0, 0] * axis + [0, short] + [0, 0] * (count - axis - 1)))
            crop.append(slice(before, before + size))
        y = y[tuple(crop)]
        return y if bias is None else y + bias.reshape((-1,) + (1,) * count)

    return call.bind(convolve, "x", "weight", "?bias")


def _pooling(call: Call) -> tuple[int, tuple[int, ...], tuple[int, ...], str, Pads, bool]:
    count = _spatial(call)
    kernel = call.integers("kernel_sizes")
    strides = call.integers("strides", (1,) * count)
    kind = call.text("pad_type", known=_PAD_TYPES)
    ceil = call.flag("ceil_mode", False)
    if ceil and kind.startswith("same"):
        raise call.unsupported(f"ceil_mode together with pad_type {kind}")
    return count, kernel, strides, kind, _pads(call, count), ceil


def _padding_for(x: Any, kind: str, kernel: Any, strides: Any, pads: Pads, ceil: bool) -> tuple[list[int], list[int]]:
    """What to pad with, and how many of the positions after the end exist only because the output is rounded up."""
    sizes = x.shape[2:]
    if kind.startswith("same"):
        pads = same_pads(sizes, kernel, strides, kind == "same_lower")
    elif kind == "valid":
        pads = (0,) * (2 * len(kernel))
    extra = []
    for axis, size in enumerate(sizes):
        before, after = pads[2 * axis], pads[2 * axis + 1]
        rest = (size + before + after - kernel[axis]) % strides[axis]
        more = (strides[axis] - rest) % strides[axis] if ceil else 0
        # A window that would begin beyond the input and its front padding is left out where there is padding, as Core
        # ML's documentation has it; where there is none it would be counted, and hold nothing.
        if more and (size + before + after - kernel[axis] + more) // strides[axis] * strides[axis] >= size + before:
            if before == after == 0:
                raise ValueError("rounded up, its last window lies outside of the input")
            more = 0
        extra.append(more)
    return list(pads), extra


@op("max_pool")
def max_pool(call: Call) -> Bound:
    count, kernel, strides, kind, pads, ceil = _pooling(call)
    pool = _MAX[count]

    def run(x: Any) -> Any:
        padding, extra = _padding_for(x, kind, kernel, strides, pads, ceil)
        total = [pad + (extra[i // 2] if i % 2 else 0) for i, pad in enumerate(padding)]
        if any(total):
            x = functional.pad(x, _reversed(total), value=-math.inf)
        return pool(x, kernel, strides)

    return call.bind(run, "x")


@op("avg_pool", "l2_pool")
def avg_pool(call: Call) -> Bound:
    """The mean over a window: over all of it, or with `exclude_padding_from_average` over what is not padding."""
    count, kernel, strides, kind, pads, ceil = _pooling(call)
    squares = call.node.type == "l2_pool"
    exclude = not squares and call.flag("exclude_padding_from_average", False)
    pool, area = _AVERAGE[count], math.prod(kernel)

    def run(x: Any) -> Any:
        padding, extra = _padding_for(x, kind, kernel, strides, pads, ceil)
        ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype)
        x = functional.pad(x.square() if squares else x, _reversed(padding))
        # What rounding up adds never counts; what padding adds counts unless it is excluded.
        ones = functional.pad(ones, _reversed(padding), value=0.0 if exclude else 1.0)
        beyond = _reversed([each for more in extra for each in (0, more)])
        sums = pool(functional.pad(x, beyond), kernel, strides) * area
        if squares:
            return torch.sqrt(sums)
        return sums / (pool(functional.pad(ones, beyond), kernel, strides) * area)

    return call.bind(run, "x")

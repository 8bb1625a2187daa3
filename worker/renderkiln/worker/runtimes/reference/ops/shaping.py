"""Shapes: `reshape`, `transpose`, `squeeze`, `shape`, and what rearranges space and depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from renderkiln.schema.errors import ModelLoadError

from .registry import TORCH, Bound, Call, op, product, scalars


@op("reshape")
def reshape(call: Call) -> Bound:
    """-1 stands for what is left over; 0, where the rank stays, for the size as it was."""
    if not call.is_constant("shape"):
        return call.bind(lambda x, shape: x.reshape(_with_zeros(x, scalars(shape))), "x", "shape", moves=True)
    target = call.integers("shape")
    if 0 in target and 0 not in (call.type("x").shape or ()):
        return call.bind(lambda x: x.reshape(_with_zeros(x, target)), "x", moves=True)
    return call.bind(lambda x: x.reshape(target), "x", moves=True)


def _with_zeros(x: Any, target: Sequence[int]) -> list[int]:
    if 0 in target and x.dim() == len(target) and x.numel():
        return [old if new == 0 else new for old, new in zip(x.shape, target, strict=True)]
    return list(target)


@op("reshape_like")
def reshape_like(call: Call) -> Bound:
    count = len(call.names("ref_tensors"))
    parts: list[tuple[int, int | None]] = []
    for position in range(count):
        begin, end, masked = (
            int(call.each("begins")[position]),
            int(call.each("ends")[position]),
            bool(call.each("end_masks")[position]),
        )
        parts.append((begin, None if masked else end))

    def run(x: Any, *references: Any) -> Any:
        sizes: list[int] = []
        for reference, (begin, end) in zip(references, parts, strict=True):
            sizes += reference.shape[begin:end]
        return x.reshape(sizes)

    return call.bind(run, "x", "*ref_tensors", moves=True)


@op("transpose")
def transpose(call: Call) -> Bound:
    order = call.axes("perm")
    return call.bind(lambda x: x.permute(order), "x", moves=True)


@op("expand_dims")
def expand_dims(call: Call) -> Bound:
    given = call.integers("axes")
    rank = call.rank("x") + len(given)
    axes = sorted(call.normal_axis(axis, rank) for axis in given)

    def run(x: Any) -> Any:
        for axis in axes:
            x = x.unsqueeze(axis)
        return x

    return call.bind(run, "x", moves=True)


@op("squeeze")
def squeeze(call: Call) -> Bound:
    """Without axes, all of size 1; with, those of them that are of size 1."""
    if not call.has("axes"):
        return call.bind(torch.squeeze, "x", moves=True)
    axes = call.axes("axes")
    return call.bind(lambda x: x.squeeze(axes), "x", moves=True)


@op("shape")
def shape(call: Call) -> Bound:
    carrier = TORCH[call.output.dtype]
    return call.bind(lambda x: torch.tensor(x.shape, dtype=carrier), "x")


@op("flatten2d")
def flatten2d(call: Call) -> Bound:
    axis = call.integer("axis", 1)
    rank = call.rank("x")
    if not -rank <= axis <= rank:
        raise ModelLoadError(f"{call.node.where} (flatten2d): there is no axis {axis} of {rank}")
    axis = axis + rank if axis < 0 else axis
    return call.bind(lambda x: x.reshape(product(x.shape[:axis]), product(x.shape[axis:])), "x", moves=True)


@op("reverse")
def reverse(call: Call) -> Bound:
    axes = call.axes("axes", range(call.rank("x")))
    return call.bind(lambda x: torch.flip(x, axes), "x")


@op("pixel_shuffle")
def pixel_shuffle(call: Call) -> Bound:
    factor = call.integer("upscale_factor")
    return call.bind(lambda x: functional.pixel_shuffle(x, factor), "x")


@op("pixel_unshuffle")
def pixel_unshuffle(call: Call) -> Bound:
    factor = call.integer("downscale_factor")
    return call.bind(lambda x: functional.pixel_unshuffle(x, factor), "x")


@op("depth_to_space")
def depth_to_space(call: Call) -> Bound:
    """Block by block, the block's position first: channel = (row in block, column in block, channel)."""
    block = call.integer("block_size")

    def run(x: Any) -> Any:
        n, c, h, w = x.shape
        y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return y.reshape(n, c // block**2, h * block, w * block)

    return call.bind(run, "x")


@op("space_to_depth")
def space_to_depth(call: Call) -> Bound:
    block = call.integer("block_size")

    def run(x: Any) -> Any:
        n, c, h, w = x.shape
        y = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
        return y.reshape(n, c * block**2, h // block, w // block)

    return call.bind(run, "x")

"""Taking parts: slices by index and by size, splits, windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from renderkiln.schema.errors import ModelLoadError

from .registry import Bound, Call, op, scalars


class Cut:
    """The parts of `slice_by_index` and `slice_update` that are constant."""

    def __init__(self, call: Call, of: str = "x") -> None:
        rank = call.rank(of)
        self.stride = call.integers("stride", (1,) * rank)
        self.begin_mask = call.flags("begin_mask", (False,) * rank)
        self.end_mask = call.flags("end_mask", (False,) * rank)
        self.squeeze_mask = call.flags("squeeze_mask", (False,) * rank)
        if {len(self.stride), len(self.begin_mask), len(self.end_mask), len(self.squeeze_mask)} != {rank}:
            raise ModelLoadError(f"{call.node.where} ({call.node.type}): its parameters do not fit a rank of {rank}")
        if 0 in self.stride:
            raise ModelLoadError(f"{call.node.where} ({call.node.type}): a stride of 0")
        self.backwards = tuple(axis for axis, stride in enumerate(self.stride) if stride < 0)

    def index(self, sizes: Sequence[int], begin: Sequence[int], end: Sequence[int]) -> tuple[slice | int, ...]:
        """For a tensor of these sizes, with backward axes flipped before (torch has no negative strides)."""
        parts: list[slice | int] = []
        for axis, size in enumerate(sizes):
            first = None if self.begin_mask[axis] else begin[axis]
            last = None if self.end_mask[axis] else end[axis]
            if self.squeeze_mask[axis]:
                at = 0 if first is None else first
                if not -size <= at < size:
                    raise IndexError(f"there is no index {at} on axis {axis}, whose size is {size}")
                at = at % size
                parts.append(size - 1 - at if axis in self.backwards else at)
                continue
            chosen = range(size)[first : last : self.stride[axis]]
            if axis in self.backwards:
                chosen = range(size - 1 - chosen.start, size - 1 - chosen.stop, -chosen.step)
            parts.append(slice(chosen.start, max(chosen.start, chosen.stop), chosen.step))
        return tuple(parts)

    def flip(self, x: Any) -> Any:
        return torch.flip(x, self.backwards) if self.backwards else x


@op("slice_by_index")
def slice_by_index(call: Call) -> Bound:
    cut = Cut(call)
    if call.is_constant("begin") and call.is_constant("end"):
        begin, end = call.integers("begin"), call.integers("end")
        return call.bind(lambda x: cut.flip(x)[cut.index(x.shape, begin, end)], "x", moves=True)
    return call.bind(
        lambda x, begin, end: cut.flip(x)[cut.index(x.shape, scalars(begin), scalars(end))],
        "x",
        "begin",
        "end",
        moves=True,
    )


@op("slice_update")
def slice_update(call: Call) -> Bound:
    cut = Cut(call)

    def run(x: Any, update: Any, begin: Any, end: Any) -> Any:
        y = cut.flip(x).clone()
        index = cut.index(x.shape, scalars(begin), scalars(end))
        y[index] = update
        for axis in cut.backwards:
            y[index] = torch.flip(update, (axis,))
        return cut.flip(y)

    if cut.backwards and any(cut.squeeze_mask):
        raise call.unsupported("a negative stride together with squeeze_mask")
    if len(cut.backwards) > 1:
        raise call.unsupported("several negative strides")
    return call.bind(run, "x", "update", "begin", "end")


@op("slice_by_size")
def slice_by_size(call: Call) -> Bound:
    """From `begin` on `size` elements, or with -1 all that follow."""

    def run(x: Any, begin: Any, size: Any) -> Any:
        index = []
        for axis, (first, count) in enumerate(zip(scalars(begin), scalars(size), strict=True)):
            at = first + x.shape[axis] if first < 0 else first
            stop = x.shape[axis] if count == -1 else at + count
            if not 0 <= at <= stop <= x.shape[axis]:
                raise IndexError(f"elements {first} to {stop} do not lie on axis {axis}, whose size is {x.shape[axis]}")
            index.append(slice(at, stop))
        return x[tuple(index)]

    return call.bind(run, "x", "begin", "size", moves=True)


@op("split")
def split(call: Call) -> Bound:
    axis = call.axis("axis")
    if call.has("split_sizes"):
        sizes = call.integers("split_sizes")
        if call.has("num_splits") and call.integer("num_splits") != len(sizes):
            raise ModelLoadError(f"{call.node.where} (split): num_splits and split_sizes do not fit")
        return call.bind(lambda x: torch.split(x, sizes, axis), "x", moves=True)
    count = call.integer("num_splits")

    def run(x: Any) -> Any:
        if x.shape[axis] % count:
            raise ValueError(f"{x.shape[axis]} elements do not split into {count} equal parts")
        return torch.split(x, x.shape[axis] // count, axis)

    return call.bind(run, "x", moves=True)


@op("sliding_windows")
def sliding_windows(call: Call) -> Bound:
    """Windows along an axis: their number takes the axis' place, their size comes behind it."""
    axis, size, stride = call.axis("axis"), call.integer("size"), call.integer("stride", 1)
    return call.bind(lambda x: x.unfold(axis, size, stride).movedim(-1, axis + 1), "x", moves=True)

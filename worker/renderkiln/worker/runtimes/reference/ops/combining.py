"""Putting together and making new: `concat`, `stack`, `tile`, `pad`, `fill`, ranges, bands, sorting."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .registry import TORCH, Bound, Call, op, scalars


@op("concat")
def concat(call: Call) -> Bound:
    interleave = call.flag("interleave", False)
    first = call.names("values")[0]
    rank = call.rank_of(first)
    if rank == 0:
        # Numbers become a list, as in the computation of shapes.
        call.integer("axis")
        return call.bind(lambda *values: torch.stack(values), "*values")
    axis = call.normal_axis(call.integer("axis"), rank)
    if interleave:
        return call.bind(lambda *values: torch.stack(values, axis + 1).flatten(axis, axis + 1), "*values")
    return call.bind(lambda *values: torch.cat(values, axis), "*values")


@op("stack")
def stack(call: Call) -> Bound:
    axis = call.normal_axis(call.integer("axis"), call.rank_of(call.names("values")[0]) + 1)
    return call.bind(lambda *values: torch.stack(values, axis), "*values")


@op("tile")
def tile(call: Call) -> Bound:
    if call.is_constant("reps"):
        times = call.integers("reps")
        return call.bind(lambda x: x.repeat(times), "x")
    return call.bind(lambda x, reps: x.repeat(scalars(reps)), "x", "reps")


_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}


@op("pad")
def pad(call: Call) -> Bound:
    """The last axes, as many as there are pairs (before, after), the first of them first."""
    mode = call.text("mode", "constant", known=tuple(_MODES))
    value = float(call.constant("constant_val", 0.0))

    def run(x: Any, amounts: Any) -> Any:
        pairs = scalars(amounts)
        flat = [each for i in range(len(pairs) - 2, -1, -2) for each in pairs[i : i + 2]]
        if mode == "constant":
            return functional.pad(x, flat, value=value)
        for axis in range(x.dim() - len(pairs) // 2, x.dim()):
            before, after = pairs[2 * axis - 2 * x.dim() :][:2]
            x = _pad_axis(x, axis, before, after, mode)
        return x

    return call.bind(run, "x", "pad")


def _pad_axis(x: Any, axis: int, before: int, after: int, mode: str) -> Any:
    size = x.shape[axis]
    places = torch.arange(-before, size + after)
    if mode == "replicate":
        places = places.clamp(0, size - 1)
    else:
        if max(before, after) > size - 1:
            raise ValueError(f"an axis of {size} elements cannot be reflected by {max(before, after)}")
        places = places.abs()
        places = (size - 1) - ((size - 1) - places).abs()
    return torch.index_select(x, axis, places)


@op("fill")
def fill(call: Call) -> Bound:
    carrier = TORCH[call.output.dtype]
    value = call.constant("value", 0.0).item() if call.has("value") else 0
    return call.bind(lambda shape: torch.full(scalars(shape), value, dtype=carrier), "shape")


@op("fill_like")
def fill_like(call: Call) -> Bound:
    carrier = TORCH[call.output.dtype]
    value = call.constant("value", 0.0).item() if call.has("value") else 0
    return call.bind(lambda reference: torch.full(reference.shape, value, dtype=carrier), "ref_tensor")


@op("range_1d")
def range_1d(call: Call) -> Bound:
    carrier = TORCH[call.output.dtype]
    return call.bind(
        lambda start, end, step: torch.arange(start.item(), end.item(), step.item(), dtype=carrier),
        "start",
        "end",
        "step",
    )


@op("one_hot")
def one_hot(call: Call) -> Bound:
    carrier = TORCH[call.output.dtype]
    axis = call.normal_axis(call.integer("axis", -1), call.rank("indices") + 1)

    def run(indices: Any, size: Any, on: Any, off: Any) -> Any:
        places = torch.arange(int(size)).reshape((-1,) + (1,) * (indices.dim() - axis))
        on = torch.ones((), dtype=carrier) if on is None else on
        off = torch.zeros((), dtype=carrier) if off is None else off
        return torch.where(indices.unsqueeze(axis) == places, on, off)

    return call.bind(run, "indices", "one_hot_vector_size", "?on_value", "?off_value")


@op("band_part")
def band_part(call: Call) -> Bound:
    """Keeps `lower` diagonals below the main one and `upper` above it; -1 keeps all of them."""
    lower, upper = call.integer("lower", -1), call.integer("upper", -1)

    def run(x: Any) -> Any:
        y = x if lower < 0 else torch.triu(x, -lower)
        return y if upper < 0 else torch.tril(y, upper)

    return call.bind(run, "x", moves=True)


@op("cumsum")
def cumsum(call: Call) -> Bound:
    axis = call.axis("axis", 0)
    exclusive, backwards = call.flag("exclusive", False), call.flag("reverse", False)

    def run(x: Any) -> Any:
        y = torch.flip(x, (axis,)) if backwards else x
        total = torch.cumsum(y, axis, dtype=y.dtype)
        # Each sum without its own element: the sums, moved on by one place.
        if exclusive:
            total = torch.cat(
                [torch.zeros_like(total.narrow(axis, 0, 1)), total.narrow(axis, 0, y.shape[axis] - 1)], axis
            )
        return torch.flip(total, (axis,)) if backwards else total

    return call.bind(run, "x")


@op("argsort")
def argsort(call: Call) -> Bound:
    axis, ascending = call.axis("axis", -1), call.flag("ascending", False)
    carrier = TORCH[call.output.dtype]
    return call.bind(lambda x: torch.argsort(x, dim=axis, descending=not ascending, stable=True).to(carrier), "x")


@op("topk")
def topk(call: Call) -> Bound:
    axis, smallest, in_order = call.axis("axis", -1), call.flag("ascending", False), call.flag("sort", True)
    both = call.flag("return_indices", True)
    carrier = TORCH[call.text("output_indices_dtype", "int32", known=("int32", "uint16", "int16", "uint8"))]

    def run(x: Any, k: Any) -> Any:
        # Stable: of equal elements the first one comes first.
        values, indices = torch.sort(x, dim=axis, descending=not smallest, stable=True)
        count = 1 if k is None else int(k)
        values, indices = values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
        if not in_order:
            indices = torch.sort(indices, dim=axis).values
            values = torch.gather(x, axis, indices)
        return (values, indices.to(carrier)) if both else values

    return call.bind(run, "x", "?k")


@op("non_zero")
def non_zero(call: Call) -> Bound:
    return call.bind(lambda x: torch.nonzero(x).to(torch.int32), "x")

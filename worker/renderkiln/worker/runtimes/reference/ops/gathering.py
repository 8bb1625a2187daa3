"""Gathering and scattering by index. Negative indices count from the end; others outside are an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .registry import Bound, Call, op


def _within(indices: Any, size: int) -> Any:
    """Indices from 0, as int64, for torch."""
    indices = indices.long()
    if indices.numel() and (int(indices.min()) < -size or int(indices.max()) >= size):
        raise IndexError(f"indices {int(indices.min())} … {int(indices.max())} on an axis of {size} elements")
    return torch.where(indices < 0, indices + size, indices)


@op("gather")
def gather(call: Call) -> Bound:
    axis, batch = call.axis("axis", 0), call.integer("batch_dims", 0)
    call.flag("validate_indices", False)  # they are always looked at here
    batch = call.normal_axis(batch, call.rank("indices")) if batch < 0 else batch
    if batch > axis:
        raise call.unsupported(f"batch_dims {batch} with axis {axis}")

    def run(x: Any, indices: Any) -> Any:
        places = _within(indices, x.shape[axis])
        if batch == 0:
            y = torch.index_select(x, axis, places.reshape(-1))
            return y.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])
        lead, rest = x.shape[:batch], indices.shape[batch:]
        flat = x.reshape(-1, *x.shape[batch:])
        many = places.reshape(flat.shape[0], -1)
        parts = [torch.index_select(each, axis - batch, where) for each, where in zip(flat, many, strict=True)]
        return torch.stack(parts).reshape(*lead, *x.shape[batch:axis], *rest, *x.shape[axis + 1 :])

    return call.bind(run, "x", "indices")


@op("gather_along_axis")
def gather_along_axis(call: Call) -> Bound:
    axis = call.axis("axis", 0)
    call.flag("validate_indices", False)
    return call.bind(lambda x, indices: torch.gather(x, axis, _within(indices, x.shape[axis])), "x", "indices")


@op("gather_nd")
def gather_nd(call: Call) -> Bound:
    batch = call.integer("batch_dims", 0)
    call.flag("validate_indices", False)

    def run(x: Any, indices: Any) -> Any:
        depth = indices.shape[-1]
        places = [_within(indices[..., i], x.shape[batch + i]) for i in range(depth)]
        lead = [
            torch.arange(x.shape[i]).reshape((1,) * i + (-1,) + (1,) * (indices.dim() - 2 - i)) for i in range(batch)
        ]
        return x[tuple(lead + places)]

    return call.bind(run, "x", "indices")


#: How `scatter` puts an update where something is; torch's names for its reductions.
_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
_SCATTER = ("update", "add", "sub", "mul", "div", "max", "min")


def _scatterer(mode: str) -> Callable[[Any, int, Any, Any], Any]:
    def run(data: Any, axis: int, places: Any, updates: Any) -> Any:
        if mode == "update":
            return data.scatter(axis, places, updates)
        if mode == "sub":
            return data.scatter_reduce(axis, places, -updates, "sum", include_self=True)
        if mode == "div":
            return data.scatter_reduce(axis, places, torch.reciprocal(updates), "prod", include_self=True)
        return data.scatter_reduce(axis, places, updates, _REDUCE[mode], include_self=True)

    return run


@op("scatter_along_axis")
def scatter_along_axis(call: Call) -> Bound:
    axis, mode = call.axis("axis", 0, of="data"), call.text("mode", "add", known=_SCATTER)
    call.flag("validate_indices", False)
    scatter_into = _scatterer(mode)
    return call.bind(
        lambda data, indices, updates: scatter_into(data, axis, _within(indices, data.shape[axis]), updates),
        "data",
        "indices",
        "updates",
    )


@op("scatter")
def scatter(call: Call) -> Bound:
    """Whole slices along an axis, one for each index."""
    axis, mode = call.axis("axis", 0, of="data"), call.text("mode", "add", known=_SCATTER)
    call.flag("validate_indices", False)
    scatter_into = _scatterer(mode)

    def run(data: Any, indices: Any, updates: Any) -> Any:
        places = _within(indices, data.shape[axis])
        flat = updates.reshape(*data.shape[:axis], places.numel(), *data.shape[axis + 1 :])
        sizes = [-1 if each == axis else 1 for each in range(data.dim())]
        return scatter_into(data, axis, places.reshape(sizes).expand_as(flat), flat)

    return call.bind(run, "data", "indices", "updates")


@op("scatter_nd")
def scatter_nd(call: Call) -> Bound:
    mode = call.text("mode", "add", known=_SCATTER)
    call.flag("validate_indices", False)
    scatter_into = _scatterer(mode)

    def run(data: Any, indices: Any, updates: Any) -> Any:
        depth = indices.shape[-1]
        rows = torch.zeros(indices.shape[:-1], dtype=torch.long)
        for i in range(depth):
            rows = rows * data.shape[i] + _within(indices[..., i], data.shape[i])
        flat = data.reshape(-1, *data.shape[depth:])
        flat = flat.reshape(flat.shape[0], -1)
        changes = updates.reshape(rows.numel(), -1)
        return scatter_into(flat, 0, rows.reshape(-1, 1).expand_as(changes), changes).reshape(data.shape)

    return call.bind(run, "data", "indices", "updates")

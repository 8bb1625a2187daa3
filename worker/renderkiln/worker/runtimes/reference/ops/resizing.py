"""Resizing of the last two axes: nearest neighbour and bilinear."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional

from .registry import Bound, Call, op, scalars

_SAMPLING = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def _images(x: Any) -> Any:
    """All but the last two axes as one batch of one channel each, which torch's resizing takes."""
    return x.reshape(1, -1, *x.shape[-2:])


def _nearest(x: Any, height: int, width: int) -> Any:
    return functional.interpolate(_images(x), (height, width), mode="nearest").reshape(*x.shape[:-2], height, width)


@op("upsample_nearest_neighbor")
def upsample_nearest_neighbor(call: Call) -> Bound:
    rows, columns = call.number("scale_factor_height", 1), call.number("scale_factor_width", 1)
    return call.bind(lambda x: _nearest(x, math.floor(x.shape[-2] * rows), math.floor(x.shape[-1] * columns)), "x")


@op("resize_nearest_neighbor")
def resize_nearest_neighbor(call: Call) -> Bound:
    height, width = call.integer("target_size_height"), call.integer("target_size_width")
    return call.bind(lambda x: _nearest(x, height, width), "x")


@op("upsample_bilinear")
def upsample_bilinear(call: Call) -> Bound:
    rows, columns = call.number("scale_factor_height", 1), call.number("scale_factor_width", 1)
    corners = call.flag("align_corners", True)
    if call.has("half_pixel_centers") and call.flag("half_pixel_centers") == corners:
        raise call.unsupported("half_pixel_centers equal to align_corners")

    def run(x: Any) -> Any:
        height, width = math.floor(x.shape[-2] * rows), math.floor(x.shape[-1] * columns)
        y = functional.interpolate(_images(x), (height, width), mode="bilinear", align_corners=corners)
        return y.reshape(*x.shape[:-2], height, width)

    return call.bind(run, "x")


@op("resize_bilinear")
def resize_bilinear(call: Call) -> Bound:
    height, width = call.integer("target_size_height", 1), call.integer("target_size_width", 1)
    mode = call.text("sampling_mode", "DEFAULT", known=_SAMPLING)
    return call.bind(lambda x: _bilinear(x, height, width, mode), "x")


@op("resize")
def resize(call: Call) -> Bound:
    """The last `resized_dims` numbers of `shape` are the new sizes of the last axes; 0 keeps one."""
    nearest = call.text("interpolation_mode", "LINEAR", known=("LINEAR", "NEAREST_NEIGHBOR")) == "NEAREST_NEIGHBOR"
    mode = call.text("sampling_mode", "DEFAULT", known=_SAMPLING)
    count = call.integer("resized_dims")
    if count not in (1, 2) or (nearest and mode != "UNALIGN_CORNERS" and mode != "DEFAULT"):
        raise call.unsupported(f"{count} resized_dims, {'nearest neighbour' if nearest else 'linear'}, {mode}")

    def run(x: Any, shape: Any) -> Any:
        wanted = [0, 0, *scalars(shape)[-count:]][-2:]
        height, width = (old if new == 0 else new for old, new in zip(x.shape[-2:], wanted, strict=True))
        if nearest:
            return _nearest(x, height, width)
        return _bilinear(x, height, width, mode)

    return call.bind(run, "x", "shape")


def _bilinear(x: Any, height: int, width: int, mode: str) -> Any:
    return _along(_along(x, -2, height, mode), -1, width, mode)


def _along(x: Any, axis: int, size: int, mode: str) -> Any:
    """Linear interpolation along one axis, at the points that the sampling mode says."""
    old = x.shape[axis]
    points = torch.tensor(grid(old, size, mode), dtype=torch.float64).clamp(0, old - 1)
    low = points.floor().long()
    high = (low + 1).clamp(max=old - 1)
    sizes = (-1,) if axis == -1 else (-1, 1)
    weight = (points - low).to(torch.float32).reshape(sizes)
    a, b = torch.index_select(x, x.dim() + axis, low), torch.index_select(x, x.dim() + axis, high)
    return a + (b - a) * weight


def grid(old: int, new: int, mode: str) -> list[float]:
    """Where the new points lie on the old axis, before they are cut off at its ends."""
    if mode == "UNALIGN_CORNERS":
        return [(i + 0.5) * old / new - 0.5 for i in range(new)]
    if mode == "OFFSET_CORNERS":
        delta = max(1, old - 1) / new
        return [(i + 0.5) * delta for i in range(new)]
    if new == 1:
        return [(old - 1) / 2 if mode == "ALIGN_CORNERS" else 0.0]
    spacing = (old - old / new if mode == "DEFAULT" else old - 1) / (new - 1)
    return [i * spacing for i in range(new)]

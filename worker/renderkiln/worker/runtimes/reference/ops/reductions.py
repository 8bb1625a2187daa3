"""Reductions over axes, and arguments of the extremes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .registry import TORCH, Bound, Call, op


def _product(x: Any, axes: tuple[int, ...], keep: bool) -> Any:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


_REDUCTIONS: dict[str, Callable[[Any, tuple[int, ...], bool], Any]] = {
    "reduce_l1_norm": lambda x, axes, keep: torch.sum(torch.abs(x), axes, keepdim=keep, dtype=x.dtype),
    "reduce_l2_norm": lambda x, axes, keep: torch.sqrt(torch.sum(torch.square(x), axes, keepdim=keep)),
    "reduce_log_sum": lambda x, axes, keep: torch.log(torch.sum(x, axes, keepdim=keep)),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
    "reduce_max": lambda x, axes, keep: torch.amax(x, axes, keepdim=keep),
    "reduce_min": lambda x, axes, keep: torch.amin(x, axes, keepdim=keep),
    "reduce_mean": lambda x, axes, keep: torch.mean(x, axes, keepdim=keep),
    "reduce_prod": _product,
    "reduce_sum": lambda x, axes, keep: torch.sum(x, axes, keepdim=keep, dtype=x.dtype),
    "reduce_sum_square": lambda x, axes, keep: torch.sum(torch.square(x), axes, keepdim=keep, dtype=x.dtype),
}
_FLOATING = ("reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_mean")


@op(*_REDUCTIONS)
def reduction(call: Call) -> Bound:
    if call.node.type in _FLOATING:
        call.refuse_integers()
    axes = call.axes("axes", range(call.rank("x")))
    keep = call.flag("keep_dims", False)
    reduce = _REDUCTIONS[call.node.type]
    return call.bind(lambda x: reduce(x, axes, keep), "x")


@op("reduce_argmax", "reduce_argmin")
def argument(call: Call) -> Bound:
    find = torch.argmax if call.node.type == "reduce_argmax" else torch.argmin
    axis, keep = call.axis("axis", -1), call.flag("keep_dims", False)
    carrier = TORCH[call.text("output_dtype", "int32", known=("int32", "uint16"))]
    return call.bind(lambda x: find(x, axis, keepdim=keep).to(carrier), "x")

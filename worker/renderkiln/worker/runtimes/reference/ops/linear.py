"""Products of matrices: `linear`, `matmul`, `einsum`, attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .registry import Bound, Call, op


@op("linear")
def linear(call: Call) -> Bound:
    return call.bind(functional.linear, "x", "weight", "?bias")


@op("matmul")
def matmul(call: Call) -> Bound:
    across_x, across_y = call.flag("transpose_x", False), call.flag("transpose_y", False)
    if min(call.rank("x"), call.rank("y")) < 2:
        raise call.unsupported("with a vector; Core ML's own tools disagree about the shape of its result")
    if across_x and across_y:
        return call.bind(lambda x, y: torch.matmul(x.transpose(-1, -2), y.transpose(-1, -2)), "x", "y")
    if across_x:
        return call.bind(lambda x, y: torch.matmul(x.transpose(-1, -2), y), "x", "y")
    if across_y:
        return call.bind(lambda x, y: torch.matmul(x, y.transpose(-1, -2)), "x", "y")
    return call.bind(torch.matmul, "x", "y")


@op("einsum")
def einsum(call: Call) -> Bound:
    equation = call.text("equation")
    return call.bind(lambda *values: torch.einsum(equation, *values), "*values")


@op("scaled_dot_product_attention")
def attention(call: Call) -> Bound:
    """Softmax of `query · keyᵀ / √d` plus the mask (one of bool: only where it is true), times `value`."""

    def attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    return call.bind(attend, "query", "key", "value", "?attn_mask")


@op("attention", fused=True)
def fused_attention(call: Call) -> Bound:
    """As `scaled_dot_product_attention`, with a scale of its own."""
    scale = call.number("scale")
    turn_key, turn_value = call.flag("turn_key"), call.flag("turn_value")

    def attend(query: Any, key: Any, value: Any, mask: Any) -> Any:
        key = key.transpose(-1, -2) if turn_key else key
        value = value.transpose(-1, -2) if turn_value else value
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    return call.bind(attend, "query", "key", "value", "?mask")

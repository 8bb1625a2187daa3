"""Normalisation over axes, channels and batches."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .registry import Bound, Call, op


@op("layer_norm")
def layer_norm(call: Call) -> Bound:
    rank = call.rank("x")
    axes = tuple(sorted(call.axes("axes", range(rank))))
    epsilon = call.number("epsilon", 1e-5)
    if axes == tuple(range(rank - len(axes), rank)):
        count = len(axes)
        return call.bind(
            lambda x, gamma, beta: functional.layer_norm(x, x.shape[-count:], gamma, beta, epsilon),
            "x",
            "?gamma",
            "?beta",
        )

    def general(x: Any, gamma: Any, beta: Any) -> Any:
        centered = x - x.mean(axes, keepdim=True)
        y = centered / torch.sqrt(centered.square().mean(axes, keepdim=True) + epsilon)
        sizes = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
        y = y if gamma is None else y * gamma.reshape(sizes)
        return y if beta is None else y + beta.reshape(sizes)

    return call.bind(general, "x", "?gamma", "?beta")


@op("group_norm", fused=True)
def group_norm(call: Call) -> Bound:
    groups, epsilon = call.integer("groups"), call.number("epsilon")
    return call.bind(
        lambda x, gamma, beta: functional.group_norm(x, groups, gamma, beta, epsilon), "x", "?gamma", "?beta"
    )


@op("instance_norm")
def instance_norm(call: Call) -> Bound:
    epsilon = call.number("epsilon", 1e-5)
    return call.bind(
        lambda x, gamma, beta: functional.group_norm(x, x.shape[1], gamma, beta, epsilon), "x", "?gamma", "?beta"
    )


@op("batch_norm")
def batch_norm(call: Call) -> Bound:
    epsilon = call.number("epsilon", 1e-5)

    def normalize(x: Any, mean: Any, variance: Any, gamma: Any, beta: Any) -> Any:
        return functional.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon)

    return call.bind(normalize, "x", "mean", "variance", "?gamma", "?beta")


@op("l2_norm")
def l2_norm(call: Call) -> Bound:
    """Over the last three axes together, as Core ML defines it."""
    epsilon = call.number("epsilon", 1e-6)
    axes = tuple(range(-min(3, call.rank("x")), 0))
    return call.bind(lambda x: x / torch.sqrt(x.square().sum(axes, keepdim=True) + epsilon), "x")

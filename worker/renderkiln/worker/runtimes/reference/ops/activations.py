"""Activations, and softmax."""

from __future__ import annotations

import torch
from torch.nn import functional

from .registry import Bound, Call, op

_PLAIN = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "tanh": torch.tanh,
}
_GELU = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")


@op(*_PLAIN)
def plain(call: Call) -> Bound:
    return call.bind(_PLAIN[call.node.type], "x")


@op("gelu")
def gelu(call: Call) -> Bound:
    mode = call.text("mode", "EXACT", known=_GELU)
    if mode == "SIGMOID_APPROXIMATION":
        return call.bind(lambda x: x * torch.sigmoid(1.702 * x), "x")
    approximate = "none" if mode == "EXACT" else "tanh"
    return call.bind(lambda x: functional.gelu(x, approximate=approximate), "x")


@op("softmax")
def softmax(call: Call) -> Bound:
    axis = call.axis("axis", -1)
    return call.bind(lambda x: torch.softmax(x, axis), "x")


@op("elu")
def elu(call: Call) -> Bound:
    alpha = call.number("alpha")
    return call.bind(lambda x: functional.elu(x, alpha), "x")


@op("leaky_relu")
def leaky_relu(call: Call) -> Bound:
    alpha = call.number("alpha")
    return call.bind(lambda x: torch.where(x >= 0, x, alpha * x), "x")


@op("prelu")
def prelu(call: Call) -> Bound:
    """A slope for each channel, which is axis 1."""
    rank = call.rank("x")
    sizes = (-1,) + (1,) * (rank - 2)
    return call.bind(lambda x, alpha: torch.where(x >= 0, x, alpha.reshape(sizes) * x), "x", "alpha")


@op("linear_activation")
def linear_activation(call: Call) -> Bound:
    alpha, beta = call.number("alpha"), call.number("beta")
    return call.bind(lambda x: alpha * x + beta, "x")


@op("scaled_tanh")
def scaled_tanh(call: Call) -> Bound:
    alpha, beta = call.number("alpha"), call.number("beta")
    return call.bind(lambda x: alpha * torch.tanh(beta * x), "x")


@op("sigmoid_hard")
def sigmoid_hard(call: Call) -> Bound:
    alpha, beta = call.number("alpha"), call.number("beta")
    return call.bind(lambda x: torch.clamp(alpha * x + beta, 0, 1), "x")


@op("clamped_relu")
def clamped_relu(call: Call) -> Bound:
    """`min(beta, x)` where x is positive, `min(beta, alpha * x)` elsewhere."""
    alpha, beta = call.number("alpha"), call.number("beta")
    return call.bind(lambda x: torch.clamp(torch.where(x >= 0, x, alpha * x), max=beta), "x")


@op("thresholded_relu")
def thresholded_relu(call: Call) -> Bound:
    alpha = call.number("alpha")
    return call.bind(lambda x: torch.where(x >= alpha, x, torch.zeros_like(x)), "x")


@op("softplus_parametric")
def softplus_parametric(call: Call) -> Bound:
    """`alpha * log(1 + exp(beta * x))`, with an alpha and a beta for each channel."""
    rank = call.rank("x")
    sizes = (-1,) + (1,) * (rank - 2)
    return call.bind(
        lambda x, alpha, beta: alpha.reshape(sizes) * functional.softplus(beta.reshape(sizes) * x), "x", "alpha", "beta"
    )

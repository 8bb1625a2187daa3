"""Reductions, products of matrices, attention and normalisation against numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from .programs import close, ct, evaluate, mb
from .test_elementwise import MODEST, draw

REDUCTIONS: dict[str, Any] = {
    "reduce_l1_norm": lambda x, a, k: np.abs(x).sum(a, keepdims=k),
    "reduce_l2_norm": lambda x, a, k: np.sqrt(np.square(x).sum(a, keepdims=k)),
    "reduce_log_sum": lambda x, a, k: np.log(x.sum(a, keepdims=k)),
    "reduce_log_sum_exp": lambda x, a, k: np.log(np.exp(x).sum(a, keepdims=k)),
    "reduce_max": lambda x, a, k: x.max(a, keepdims=k),
    "reduce_min": lambda x, a, k: x.min(a, keepdims=k),
    "reduce_mean": lambda x, a, k: x.mean(a, keepdims=k),
    "reduce_prod": lambda x, a, k: x.prod(a, keepdims=k),
    "reduce_sum": lambda x, a, k: x.sum(a, keepdims=k),
    "reduce_sum_square": lambda x, a, k: np.square(x).sum(a, keepdims=k),
}


@MODEST
@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), st.data())
def test_reductions_over_any_axes(shape: Any, data: Any) -> None:
    axes = data.draw(hnp.valid_tuple_axes(len(shape), min_size=1))
    keep = data.draw(st.booleans())
    x = np.abs(draw(len(axes), *shape)) + 0.1

    def build(x: Any) -> Any:
        return [getattr(mb, name)(x=x, axes=list(axes), keep_dims=keep) for name in REDUCTIONS]

    for got, name in zip(evaluate(build, x=x), REDUCTIONS, strict=True):
        close(got, REDUCTIONS[name](x, axes, keep), 1e-4)


def test_reductions_without_axes_take_all() -> None:
    x = draw(0, 2, 3, 4)
    [a, b] = evaluate(lambda x: [mb.reduce_sum(x=x, keep_dims=True), mb.reduce_max(x=x)], x=x)
    close(a, x.sum(keepdims=True), 1e-4)
    close(b, x.max())


@MODEST
@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), st.data())
def test_where_the_extremes_are(shape: Any, data: Any) -> None:
    axis, keep = data.draw(st.integers(-len(shape), len(shape) - 1)), data.draw(st.booleans())
    x = draw(axis + 9, *shape)
    high, low = evaluate(
        lambda x: [getattr(mb, f"reduce_arg{which}")(x=x, axis=axis, keep_dims=keep) for which in ("max", "min")], x=x
    )
    close(high, np.asarray(x.argmax(axis, keepdims=keep)))
    close(low, np.asarray(x.argmin(axis, keepdims=keep)))


@MODEST
@given(
    hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=0, max_dims=2, max_side=3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.booleans(),
    st.booleans(),
)
def test_products_of_matrices_broadcast(leads: Any, sizes: Any, turn_x: bool, turn_y: bool) -> None:
    n, k, m = sizes
    x = draw(1, *leads.input_shapes[0], *((k, n) if turn_x else (n, k)))
    y = draw(2, *leads.input_shapes[1], *((m, k) if turn_y else (k, m)))
    [got] = evaluate(lambda x, y: mb.matmul(x=x, y=y, transpose_x=turn_x, transpose_y=turn_y), x=x, y=y)
    close(got, (x.swapaxes(-1, -2) if turn_x else x) @ (y.swapaxes(-1, -2) if turn_y else y), 1e-4)


@MODEST
@given(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_linear(lead: Any, old: int, new: int, biased: bool) -> None:
    x, weight, bias = draw(0, *lead, old), draw(1, new, old), draw(2, new)
    extra = {"bias": bias} if biased else {}
    [got] = evaluate(lambda x: mb.linear(x=x, weight=weight, **extra), x=x)
    close(got, x @ weight.T + (bias if biased else 0), 1e-4)


@pytest.mark.parametrize("equation", ["bkhc,bchq->bkhq", "bchk,bkhq->bchq", "nchw,nwhu->nchu", "chw,whu->chu"])
def test_einsum(equation: str) -> None:
    sizes = {"b": 2, "c": 4, "h": 1, "q": 5, "k": 3, "n": 2, "w": 3, "u": 2}
    first, second = equation.split("->")[0].split(",")
    x, y = draw(0, *(sizes[each] for each in first)), draw(1, *(sizes[each] for each in second))
    [got] = evaluate(lambda x, y: mb.einsum(values=(x, y), equation=equation), x=x, y=y)
    close(got, np.einsum(equation, x, y), 1e-4)


@MODEST
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=2),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["none", "numbers", "truth", "one row"]),
)
def test_attention(lead: list[int], queries: int, keys: int, size: int, masked: str) -> None:
    q, k, v = draw(0, *lead, queries, size), draw(1, *lead, keys, size), draw(2, *lead, keys, size + 1)
    mask: Any = None
    if masked == "numbers":
        mask = draw(3, *lead, queries, keys)
    elif masked == "one row":
        mask = draw(3, *[1] * len(lead), 1, keys)
    elif masked == "truth":
        mask = draw(3, *lead, queries, keys) > 0
        mask[..., 0] = True
    extra = {} if mask is None else {"attn_mask": mask}

    def build(q: Any, k: Any, v: Any) -> Any:
        return mb.scaled_dot_product_attention(query=q, key=k, value=v, **extra)

    [got] = evaluate(build, q=q, k=k, v=v)
    logits = q @ k.swapaxes(-1, -2) / np.sqrt(size)
    if mask is not None:
        logits = np.where(mask, logits, -np.inf) if mask.dtype == bool else logits + mask
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    close(got, weights / weights.sum(-1, keepdims=True) @ v, 1e-4)


@MODEST
@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), st.data())
def test_layer_norm_over_any_axes(shape: Any, data: Any) -> None:
    axes = sorted(axis % len(shape) for axis in data.draw(hnp.valid_tuple_axes(len(shape), min_size=1)))
    given_axes = [axis - len(shape) if data.draw(st.booleans()) else axis for axis in axes]
    x = draw(7, *shape)
    sizes = tuple(shape[axis] for axis in axes)
    gamma, beta = draw(8, *sizes), draw(9, *sizes)
    extra = {"gamma": gamma, "beta": beta} if data.draw(st.booleans()) else {}
    [got] = evaluate(lambda x: mb.layer_norm(x=x, axes=given_axes, epsilon=1e-3, **extra), x=x)
    want = (x - x.mean(tuple(axes), keepdims=True)) / np.sqrt(x.var(tuple(axes), keepdims=True) + 1e-3)
    if extra:
        full = [size if axis in axes else 1 for axis, size in enumerate(shape)]
        want = want * gamma.reshape(full) + beta.reshape(full)
    close(got, want, 1e-3)


@pytest.mark.parametrize("target", [ct.target.macOS13, ct.target.macOS14])
def test_other_norms(target: Any) -> None:
    x = draw(0, 2, 3, 4, 5)
    gamma, beta, mean = (draw(seed, 3) for seed in (1, 2, 3))
    variance = np.abs(draw(4, 3)) + 0.5

    def build(x: Any) -> Any:
        return [
            mb.batch_norm(x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=1e-3),
            mb.batch_norm(x=x, mean=mean, variance=variance),
            mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=1e-3),
            mb.l2_norm(x=x, epsilon=1e-3),
        ]

    t = torch.from_numpy(x)
    m, v, g, b = (torch.from_numpy(each) for each in (mean, variance, gamma, beta))
    want = [
        functional.batch_norm(t, m, v, g, b, False, 0.0, 1e-3),
        functional.batch_norm(t, m, v, None, None, False, 0.0, 1e-5),
        functional.instance_norm(t, weight=g, bias=b, eps=1e-3),
        t / torch.sqrt(t.square().sum((1, 2, 3), keepdim=True) + 1e-3),
    ]
    for got, expected in zip(evaluate(build, target, x=x), want, strict=True):
        close(got, expected.numpy(), 1e-4)

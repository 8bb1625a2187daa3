"""Arithmetic, comparisons, casts and activations against numpy and torch, over shapes that broadcast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from .programs import close, ct, evaluate, mb, types

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
PAIRS = hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=4, max_side=4)
MODEST = settings(max_examples=15)

BINARY: dict[str, Any] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "floor_div": np.floor_divide,
    "mod": np.mod,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
}


def draw(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@MODEST
@given(PAIRS, st.integers(0, 1000))
def test_operations_on_two_values_broadcast(shapes: Any, seed: int) -> None:
    x, y = draw(seed, *shapes.input_shapes[0]), draw(seed + 1, *shapes.input_shapes[1])
    y[np.abs(y) < 0.1] = 0.5
    names = [*BINARY, "pow"]

    def build(x: Any, y: Any) -> Any:
        plain = [getattr(mb, name)(x=x, y=y) for name in BINARY]
        return [*plain, mb.pow(x=mb.abs(x=x), y=y)]

    want = [function(x, y) for function in BINARY.values()] + [np.power(np.abs(x), y)]
    for name, got, expected in zip(names, evaluate(build, x=x, y=y), want, strict=True):
        close(got, np.asarray(expected, got.dtype), 1e-4), name


@MODEST
@given(PAIRS, st.integers(0, 1000))
def test_whole_numbers_and_truth_values(shapes: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.integers(-9, 9, shapes.input_shapes[0]).astype(np.int32)
    y = random.integers(1, 9, shapes.input_shapes[1]).astype(np.int32)
    y *= random.choice([-1, 1], y.shape).astype(np.int32)
    names = ("add", "sub", "mul", "floor_div", "mod", "maximum", "minimum", "equal", "less")

    def build(x: Any, y: Any) -> Any:
        plain = [getattr(mb, name)(x=x, y=y) for name in names]
        a, b = mb.greater(x=x, y=1), mb.less(x=y, y=2)
        logic = [mb.logical_and(x=a, y=b), mb.logical_or(x=a, y=b), mb.logical_xor(x=a, y=b), mb.logical_not(x=a)]
        return [*plain, *logic, mb.abs(x=x), mb.sign(x=x), mb.square(x=x)]

    want = [BINARY[name](x, y) for name in names]
    a, b = x > 1, y < 2
    want += [a & b, a | b, a ^ b, ~a, np.abs(x), np.sign(x), np.square(x)]
    for got, expected in zip(evaluate(build, x=x, y=y), want, strict=True):
        close(got, expected)


UNARY: dict[str, Any] = {
    "abs": np.abs,
    "atan": np.arctan,
    "ceil": np.ceil,
    "cos": np.cos,
    "cosh": np.cosh,
    "erf": lambda x: torch.erf(torch.from_numpy(x)).numpy(),
    "exp": np.exp,
    "exp2": np.exp2,
    "floor": np.floor,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "round": np.round,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "sign": np.sign,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "sin": np.sin,
    "sinh": np.sinh,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "square": np.square,
    "tan": np.tan,
    "tanh": np.tanh,
}


@MODEST
@given(SHAPES, st.integers(0, 1000))
def test_operations_on_one_value(shape: Any, seed: int) -> None:
    x = draw(seed, *shape)
    x[np.abs(np.abs(x) - np.pi / 2) < 0.1] = 1
    for got, name in zip(evaluate(lambda x: [getattr(mb, n)(x=x) for n in UNARY], x=x), UNARY, strict=True):
        close(got, UNARY[name](x), 1e-4)


@MODEST
@given(SHAPES, st.integers(0, 1000))
def test_operations_on_what_is_between_0_and_1(shape: Any, seed: int) -> None:
    x = np.random.default_rng(seed).uniform(0.01, 0.99, shape).astype(np.float32)

    def build(x: Any) -> Any:
        roots = [mb.sqrt(x=x), mb.rsqrt(x=x, epsilon=0.25), mb.log(x=x, epsilon=0.5), mb.inverse(x=x, epsilon=0.5)]
        arcs = [mb.acos(x=x), mb.asin(x=x), mb.atanh(x=x)]
        return [*roots, *arcs, mb.clip(x=x, alpha=0.25, beta=0.5), mb.threshold(x=x, alpha=0.5)]

    want = [np.sqrt(x), 1 / np.sqrt(x + 0.25), np.log(x + 0.5), 1 / (x + 0.5), np.arccos(x), np.arcsin(x)]
    want += [np.arctanh(x), np.clip(x, 0.25, 0.5), np.maximum(x, 0.5)]
    for got, expected in zip(evaluate(build, x=x), want, strict=True):
        close(got, expected, 1e-4)


@pytest.mark.parametrize("target", [ct.target.macOS12, ct.target.macOS13, ct.target.macOS14, ct.target.macOS15])
def test_activations_with_parameters(target: Any) -> None:
    x = draw(0, 2, 3, 4, 5) * 2
    alpha, beta = np.array([0.5, 1, 2], np.float32), np.array([1, 2, 0.5], np.float32)

    def build(x: Any) -> Any:
        return [
            mb.gelu(x=x),
            mb.gelu(x=x, mode="TANH_APPROXIMATION"),
            mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
            mb.elu(x=x, alpha=0.5),
            mb.leaky_relu(x=x, alpha=0.25),
            mb.prelu(x=x, alpha=alpha),
            mb.linear_activation(x=x, alpha=2.0, beta=3.0),
            mb.scaled_tanh(x=x, alpha=2.0, beta=0.5),
            mb.sigmoid_hard(x=x, alpha=0.25, beta=0.5),
            mb.clamped_relu(x=x, alpha=0.5, beta=1.0),
            mb.thresholded_relu(x=x, alpha=0.5),
            mb.softplus_parametric(x=x, alpha=alpha, beta=beta),
        ]

    t = torch.from_numpy(x)
    a, b = alpha.reshape(1, 3, 1, 1), beta.reshape(1, 3, 1, 1)
    want = [
        functional.gelu(t).numpy(),
        functional.gelu(t, approximate="tanh").numpy(),
        x / (1 + np.exp(-1.702 * x)),
        functional.elu(t, 0.5).numpy(),
        functional.leaky_relu(t, 0.25).numpy(),
        np.where(x >= 0, x, a * x),
        2 * x + 3,
        2 * np.tanh(0.5 * x),
        np.clip(0.25 * x + 0.5, 0, 1),
        np.minimum(np.where(x >= 0, x, 0.5 * x), 1),
        np.where(x >= 0.5, x, 0),
        a * np.log1p(np.exp(b * x)),
    ]
    for got, expected in zip(evaluate(build, target, x=x), want, strict=True):
        close(got, expected)


@MODEST
@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), st.data())
def test_softmax_along_any_axis(shape: Any, data: Any) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = draw(axis, *shape) if axis >= 0 else draw(100 - axis, *shape)
    [got] = evaluate(lambda x: mb.softmax(x=x, axis=axis), x=x)
    close(got, torch.softmax(torch.from_numpy(x), axis).numpy())


@MODEST
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, min_dims=1, max_dims=3, max_side=3), st.integers(0, 1000))
def test_select_takes_a_where_the_condition_holds(shapes: Any, seed: int) -> None:
    c, a, b = (draw(seed + i, *shape) for i, shape in enumerate(shapes.input_shapes))

    def build(c: Any, a: Any, b: Any) -> Any:
        return mb.select(cond=mb.greater(x=c, y=0.0), a=a, b=b)

    # The builder of coremltools wants the condition's shape to be the result's.
    c = np.broadcast_to(c, shapes.result_shape).copy()
    a, b = np.broadcast_to(a, shapes.result_shape).copy(), np.broadcast_to(b, shapes.result_shape).copy()
    [got] = evaluate(build, c=c, a=a, b=b)
    close(got, np.where(c > 0, a, b))


def test_casts() -> None:
    x = np.array([-2.75, -0.5, 0, 0.5, 2.75, 300.5, 40000], np.float32)
    kinds = ("int32", "int16", "uint16", "int8", "uint8", "bool")
    got = evaluate(lambda x: [mb.cast(x=x, dtype=kind) for kind in kinds], x=x)
    want = [
        [-2, 0, 0, 0, 2, 300, 40000],
        [-2, 0, 0, 0, 2, 300, 40000 - 65536],
        [65534, 0, 0, 0, 2, 300, 40000],
        [-2, 0, 0, 0, 2, 44, 64],
        [254, 0, 0, 0, 2, 44, 64],
        [1, 1, 0, 1, 1, 1, 1],
    ]
    for one, expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, expected)


def test_halves_are_rounded_to_even() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    close(evaluate(lambda x: mb.round(x=x), x=x)[0], [0, 2, 2, 0, -2])


def test_a_half_precision_input_arrives_as_such() -> None:
    x = np.array([1 / 3, 2, 65504], np.float16)
    [got] = evaluate(lambda x: mb.cast(x=x, dtype="fp32"), x=x)
    assert got.dtype == np.float32
    close(got, x.astype(np.float32))
    [got] = evaluate(lambda x: mb.mul(x=x, y=types.nptype_from_builtin(types.fp16)(0.5)), x=x)
    assert got.dtype == np.float16

"""Convolutions and pooling against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional

from renderkiln.schema.errors import PredictionError
from renderkiln.worker.runtimes.reference.ops.convolution import same_pads

from .programs import close, evaluate, mb
from .test_elementwise import MODEST, draw

CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def padded(x: Any, pads: Any, value: float = 0.0) -> torch.Tensor:
    """(before, after) for each spatial dimension, with numpy."""
    widths = [(0, 0), (0, 0), *zip(pads[::2], pads[1::2], strict=True)]
    return torch.from_numpy(np.pad(x, widths, constant_values=value))


@MODEST
@given(st.integers(1, 3), st.sampled_from([1, 2, 4]), st.booleans(), st.data())
def test_convolution(count: int, groups: int, biased: bool, data: Any) -> None:
    def each(low: int, high: int) -> Any:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, strides, dilations, sizes = each(1, 3), each(1, 2), each(1, 2), each(5, 7)
    x, weight = draw(0, 2, 4, *sizes), draw(1, 8, 4 // groups, *kernel)
    bias = draw(2, 8) if biased else None
    kind = data.draw(st.sampled_from(["valid", "custom", "same", "same_lower"]))
    extents = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = [0] * (2 * count)
    if kind == "custom":
        pads = data.draw(st.lists(st.integers(0, 2), min_size=2 * count, max_size=2 * count))
    elif kind != "valid":
        pads = list(same_pads(sizes, extents, strides, kind == "same_lower"))
    extra = {"bias": bias} if biased else {}
    if kind == "custom":
        extra["pad"] = pads

    def build(x: Any) -> Any:
        return mb.conv(x=x, weight=weight, strides=strides, dilations=dilations, groups=groups, pad_type=kind, **extra)

    [got] = evaluate(build, x=x)
    b = None if bias is None else torch.from_numpy(bias)
    want = CONV[count](padded(x, pads), torch.from_numpy(weight), b, tuple(strides), 0, tuple(dilations), groups)
    close(got, want.numpy(), 1e-4)
    if kind.startswith("same"):
        assert list(got.shape[2:]) == [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]


def test_where_same_puts_the_odd_one() -> None:
    assert same_pads([5], [2], [1], lower=False) == (0, 1)
    assert same_pads([5], [2], [1], lower=True) == (1, 0)
    assert same_pads([5, 6], [3, 3], [2, 2], lower=False) == (1, 1, 0, 1)


def test_a_computed_weight() -> None:
    x, weight = draw(0, 1, 2, 5, 5), draw(1, 3, 2, 3, 3)
    [got] = evaluate(lambda x, weight: mb.conv(x=x, weight=weight, pad_type="valid"), x=x, weight=weight)
    close(got, functional.conv2d(torch.from_numpy(x), torch.from_numpy(weight)).numpy(), 1e-4)


@MODEST
@given(st.integers(1, 2), st.sampled_from([1, 2]), st.booleans(), st.data())
def test_transposed_convolution(count: int, groups: int, biased: bool, data: Any) -> None:
    def each(low: int, high: int) -> Any:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, strides, dilations, sizes = each(2, 4), each(1, 3), each(1, 2), each(3, 5)
    x, weight = draw(0, 2, 4, *sizes), draw(1, 4, 6 // groups, *kernel)
    bias = draw(2, 6) if biased else None
    pads = data.draw(st.lists(st.integers(0, 1), min_size=2 * count, max_size=2 * count))
    custom = data.draw(st.booleans())
    extra: dict[str, Any] = {"pad_type": "custom", "pad": pads} if custom else {"pad_type": "valid"}
    if biased:
        extra["bias"] = bias

    def build(x: Any) -> Any:
        return mb.conv_transpose(x=x, weight=weight, strides=strides, dilations=dilations, groups=groups, **extra)

    [got] = evaluate(build, x=x)
    b = None if bias is None else torch.from_numpy(bias)
    t, w = torch.from_numpy(x), torch.from_numpy(weight)
    want = TRANSPOSE[count](t, w, b, tuple(strides), 0, 0, groups, tuple(dilations)).numpy()
    if custom:
        crop = [slice(pads[2 * i], want.shape[2 + i] - pads[2 * i + 1]) for i in range(count)]
        want = want[(slice(None), slice(None), *crop)]
    close(got, want, 1e-4)


def test_transposed_convolution_to_a_given_shape() -> None:
    x, weight, bias = draw(0, 1, 2, 4, 4), draw(1, 2, 3, 3, 3), draw(2, 3)
    t, w, b = (torch.from_numpy(each) for each in (x, weight, bias))
    want = functional.conv_transpose2d(t, w, b, stride=2, padding=1, output_padding=1).numpy()

    def build(x: Any) -> Any:
        return mb.conv_transpose(
            x=x,
            weight=weight,
            bias=bias,
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            output_shape=list(want.shape),
        )

    close(evaluate(build, x=x)[0], want, 1e-4)


@MODEST
@given(st.integers(1, 2), st.booleans(), st.data())
def test_pooling(count: int, ceil: bool, data: Any) -> None:
    """Padding is the same on both sides here, and at most half a window: that is what torch can do."""

    def each(low: int, high: int) -> Any:
        return data.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    kernel, strides, sizes, pad = each(2, 3), each(1, 3), each(4, 7), each(0, 1)
    exclude = data.draw(st.booleans())
    for size, window, stride, each_pad in zip(sizes, kernel, strides, pad, strict=True):
        last = -(-(size + 2 * each_pad - window) // stride) * stride
        assume(not ceil or each_pad or last < size)  # see the next test
    x = draw(0, 2, 3, *sizes)
    custom = {
        "kernel_sizes": kernel,
        "strides": strides,
        "pad_type": "custom",
        "pad": [each for one in pad for each in (one, one)],
        "ceil_mode": ceil,
    }

    def build(x: Any) -> Any:
        average = mb.avg_pool(x=x, exclude_padding_from_average=exclude, **custom)
        return [mb.max_pool(x=x, **custom), average, mb.l2_pool(x=x, **custom)]

    most, mean, length = evaluate(build, x=x)
    t = torch.from_numpy(x)
    max_pool, avg_pool = getattr(functional, f"max_pool{count}d"), getattr(functional, f"avg_pool{count}d")
    close(most, max_pool(t, kernel, strides, pad, ceil_mode=ceil).numpy())
    close(mean, avg_pool(t, kernel, strides, pad, ceil, not exclude).numpy(), 1e-4)
    # Where windows may reach beyond the padding, torch divides by what it counts there.
    if not ceil:
        sums = avg_pool(t.square(), kernel, strides, pad, False, True) * float(np.prod(kernel))
        close(length, torch.sqrt(sums).numpy(), 1e-4)
    assert length.shape == most.shape


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
def test_a_window_that_lies_outside(kind: str) -> None:
    """Core ML declares a place for it, and nothing says what stands there."""

    def build(x: Any) -> Any:
        pool = getattr(mb, kind)
        return pool(x=x, kernel_sizes=[2], strides=[3], pad_type="custom", pad=[0, 0], ceil_mode=True)

    with pytest.raises(PredictionError, match="its last window lies outside"):
        evaluate(build, x=draw(0, 1, 1, 6))


@pytest.mark.parametrize("kind", ["same", "same_lower"])
def test_pooling_that_keeps_the_size(kind: str) -> None:
    x = draw(0, 1, 2, 5, 6)

    def build(x: Any) -> Any:
        shape: dict[str, Any] = {"kernel_sizes": [2, 2], "strides": [1, 1], "pad_type": kind}
        return [mb.max_pool(x=x, **shape), mb.avg_pool(x=x, exclude_padding_from_average=True, **shape)]

    most, mean = evaluate(build, x=x)
    pads = same_pads([5, 6], [2, 2], [1, 1], kind == "same_lower")
    close(most, functional.max_pool2d(padded(x, pads, -np.inf), 2, 1).numpy())
    ones = functional.avg_pool2d(padded(np.ones_like(x), pads), 2, 1)
    close(mean, (functional.avg_pool2d(padded(x, pads), 2, 1) / ones).numpy(), 1e-4)

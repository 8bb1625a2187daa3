"""Fused patterns give what their operations give one by one, and look-alikes are left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .programs import Build, close, mb, save
from .test_elementwise import draw


def operations(runtime: ReferenceRuntime) -> Counter[str]:
    """How often each operation is in the prepared program."""
    steps = [step for part in runtime._parts for step in part.program.steps]
    return Counter(step.label.split("(")[-1].rstrip(")") for step in steps)


def both(folder: Path, build: Build, **inputs: Any) -> Counter[str]:
    """Evaluates with and without fusing, compares, and says what is left when it is fused."""
    path = save(folder, build, {name: (array.shape, str(array.dtype)) for name, array in inputs.items()})
    plain, fused = ReferenceRuntime.load(path, fuse=False), ReferenceRuntime.load(path)
    want, got = plain.predict(inputs), fused.predict(inputs)
    for name, array in got.items():
        close(array, want[name], 1e-4)
    return operations(fused)


def normalized(x: Any, axes: list[int], *, root: str = "sqrt", square: str = "square", epsilon: float = 1e-3) -> Any:
    mean = mb.reduce_mean(x=x, axes=axes, keep_dims=True)
    centred = mb.sub(x=x, y=mean)
    if square == "square":
        squares = mb.square(x=centred)
    elif square == "mul":
        squares = mb.mul(x=centred, y=centred)
    else:
        squares = mb.pow(x=centred, y=2.0)
    variance = mb.add(x=mb.reduce_mean(x=squares, axes=axes, keep_dims=True), y=epsilon)
    if root == "sqrt":
        return mb.real_div(x=centred, y=mb.sqrt(x=variance))
    return mb.mul(x=centred, y=mb.rsqrt(x=variance, epsilon=1e-4))


@pytest.mark.parametrize("root", ["sqrt", "rsqrt"])
@pytest.mark.parametrize("square", ["square", "mul", "pow"])
@pytest.mark.parametrize("axes", [[-1], [1], [2, 3], [1, 3]])
def test_a_norm_spelt_out(root: str, square: str, axes: list[int], tmp_path: Path) -> None:
    left = both(tmp_path, lambda x: normalized(x, axes, root=root, square=square), x=draw(0, 2, 3, 4, 5) + 2)
    assert left == {"layer_norm": 1}


def group_norm(x: Any, *, flat: bool = False) -> Any:
    shape = [2, 3, 2 * 5 * 4] if flat else [2, 3, 2, 5, 4]
    axes = [2] if flat else [2, 3, 4]
    return mb.reshape(x=normalized(mb.reshape(x=x, shape=shape), axes), shape=[2, 6, 5, 4])


GAMMA, BETA = draw(1, 6), draw(2, 6)


def scaled(x: Any, how: str) -> Any:
    y = group_norm(x)
    if how == "batch norm":
        return mb.batch_norm(
            x=y, mean=draw(3, 6), variance=np.abs(draw(4, 6)) + 0.5, gamma=GAMMA, beta=BETA, epsilon=1e-3
        )
    gamma, beta = GAMMA.reshape(1, 6, 1, 1), BETA.reshape(6, 1, 1)
    return mb.add(x=beta, y=mb.mul(x=y, y=gamma)) if how == "sum" else mb.mul(x=y, y=gamma)


def test_a_group_norm(tmp_path: Path) -> None:
    x = draw(0, 2, 6, 5, 4) * 3 + 1
    assert both(tmp_path / "a", group_norm, x=x) == {"group_norm": 1}
    assert both(tmp_path / "b", lambda x: group_norm(x, flat=True), x=x) == {"group_norm": 1}
    assert both(tmp_path / "c", lambda x: scaled(x, "batch norm"), x=x) == {"group_norm": 1}
    assert both(tmp_path / "d", lambda x: scaled(x, "sum"), x=x) == {"group_norm": 1}
    assert both(tmp_path / "e", lambda x: scaled(x, "product"), x=x) == {"group_norm": 1, "mul": 1}


def test_what_only_looks_like_a_group_norm(tmp_path: Path) -> None:
    x = draw(0, 2, 6, 5, 4)

    def other_shape(x: Any) -> Any:
        y = normalized(mb.reshape(x=x, shape=[2, 3, 2, 5, 4]), [2, 3, 4])
        return mb.reshape(x=y, shape=[2, 6, 4, 5])

    def other_axes(x: Any) -> Any:
        y = normalized(mb.reshape(x=x, shape=[2, 3, 2, 5, 4]), [3, 4])
        return mb.reshape(x=y, shape=[2, 6, 5, 4])

    def across_the_batch(x: Any) -> Any:
        y = normalized(mb.reshape(x=x, shape=[4, 3, 5, 4]), [2, 3])
        return mb.reshape(x=y, shape=[2, 6, 5, 4])

    for index, build in enumerate((other_shape, other_axes, across_the_batch)):
        left = both(tmp_path / str(index), build, x=x)
        assert left == {"reshape": 2, "layer_norm": 1}


def test_a_norm_whose_parts_are_used_elsewhere(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        mean = mb.reduce_mean(x=x, axes=[1], keep_dims=True)
        centred = mb.sub(x=x, y=mean)
        variance = mb.add(x=mb.reduce_mean(x=mb.square(x=centred), axes=[1], keep_dims=True), y=1e-3)
        return [mb.real_div(x=centred, y=mb.sqrt(x=variance)), mb.exp(x=variance)]

    assert "layer_norm" not in both(tmp_path, build, x=draw(0, 3, 4))


def test_a_norm_over_other_axes_than_its_variance(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        centred = mb.sub(x=x, y=mb.reduce_mean(x=x, axes=[1], keep_dims=True))
        variance = mb.add(x=mb.reduce_mean(x=mb.square(x=centred), axes=[0], keep_dims=True), y=1e-3)
        return mb.real_div(x=centred, y=mb.sqrt(x=variance))

    assert "layer_norm" not in both(tmp_path, build, x=draw(0, 3, 4))


def test_silu(tmp_path: Path) -> None:
    x = draw(0, 3, 4)
    assert both(tmp_path / "a", lambda x: mb.mul(x=x, y=mb.sigmoid(x=x)), x=x) == {"silu": 1}
    assert both(tmp_path / "b", lambda x: mb.mul(x=mb.sigmoid(x=x), y=x), x=x) == {"silu": 1}
    left = both(tmp_path / "c", lambda x: mb.mul(x=mb.sigmoid(x=mb.exp(x=x)), y=x), x=x)
    assert left == {"exp": 1, "sigmoid": 1, "mul": 1}


CAUSAL = np.triu(np.full((5, 5), -np.inf, np.float32), 1)


def attention(
    q: Any, k: Any, v: Any, *, mask: Any = None, scale: float | None = None, axis: int = -1, turned: bool = True
) -> Any:
    logits = mb.matmul(x=q, y=k, transpose_y=turned)
    if scale is not None:
        logits = mb.mul(x=logits, y=scale)
    if mask is not None:
        logits = mb.add(x=logits, y=mask)
    return mb.matmul(x=mb.softmax(x=logits, axis=axis), y=v)


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("mask", [None, CAUSAL, CAUSAL.reshape(1, 1, 5, 5), draw(8, 2, 3, 5, 5)])
def test_attention(scale: float | None, mask: Any, tmp_path: Path) -> None:
    q, k, v = draw(0, 2, 3, 5, 4), draw(1, 2, 3, 5, 4), draw(2, 2, 3, 5, 6)
    left = both(tmp_path, lambda q, k, v: attention(q, k, v, mask=mask, scale=scale), q=q, k=k, v=v)
    assert left == {"attention": 1}


def test_attention_with_keys_turned_and_queries_scaled(tmp_path: Path) -> None:
    q, k, v = draw(0, 2, 5, 3, 4), draw(1, 2, 3, 4, 7), draw(2, 2, 3, 7, 6)

    def build(q: Any, k: Any, v: Any) -> Any:
        query = mb.transpose(x=mb.mul(x=q, y=0.5), perm=[0, 2, 1, 3])
        return attention(query, k, v, turned=False)

    assert both(tmp_path, build, q=q, k=k, v=v) == {"transpose": 1, "attention": 1}


def test_what_only_looks_like_attention(tmp_path: Path) -> None:
    q, k, v = draw(0, 2, 3, 5, 4), draw(1, 2, 3, 5, 4), draw(2, 2, 3, 5, 6)
    hidden = np.where(np.arange(5)[:, None] == 2, -np.inf, 0).astype(np.float32) * np.ones((1, 5), np.float32)
    hidden = np.where(np.isnan(hidden), 0, hidden).astype(np.float32)
    path = save(
        tmp_path / "row",
        lambda q, k, v: attention(q, k, v, mask=hidden),
        {name: (array.shape, "float32") for name, array in (("q", q), ("k", k), ("v", v))},
    )
    # A row that is hidden as a whole is NaN, as softmax says, and not what a kernel makes of it.
    runtime = ReferenceRuntime.load(path)
    assert "attention" not in operations(runtime)
    [got] = runtime.predict({"q": q, "k": k, "v": v}).values()
    assert np.isnan(got[:, :, 2]).all()
    assert np.isfinite(got[:, :, 3]).all()
    assert "attention" not in both(tmp_path / "axis", lambda q, k, v: attention(q, k, v, axis=2), q=q, k=k, v=v)
    # A mask that is computed may hide a row.
    mask = draw(3, 2, 3, 5, 5)
    left = both(tmp_path / "mask", lambda q, k, v, m: attention(q, k, v, mask=m), q=q, k=k, v=v, m=mask)
    assert "attention" not in left


def test_half_arithmetic_fuses_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, lambda x: group_norm(x), {"x": ((2, 6, 5, 4), "float32")})
    assert "sqrt" in operations(ReferenceRuntime.load(path, arithmetic="float16"))

"""Palettes: as good as coremltools' own, exact where they can be, and the same for half and single precision."""

from __future__ import annotations

import numpy as np
import pytest
from coremltools._deps import kmeans1d
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.convert.compress.palette import Histogram
from renderkiln.worker.convert.compress.recipe import WIDTHS


def squared_error(weight: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean((weight.astype(np.float64) - other.astype(np.float64)) ** 2))


def draw(kind: str, dtype: type) -> np.ndarray:
    random = np.random.default_rng(1)
    values = {
        "normal": random.standard_normal((160, 100)) * 0.03,
        "uniform": random.uniform(-0.05, 0.05, (160, 100)),
        "with outliers": random.standard_t(3, (160, 100)) * 0.02,
        "far from zero": 5 + random.standard_normal((160, 100)),
    }
    return values[kind].astype(dtype)


@pytest.mark.parametrize("kind", ["normal", "uniform", "with outliers", "far from zero"])
@pytest.mark.parametrize("nbits", [2, 4, 6, 8])
def test_a_palette_is_hardly_worse_than_the_best_one(kind: str, nbits: int) -> None:
    weight = draw(kind, np.float16)
    values, counts = np.unique(weight.astype(np.float32), return_counts=True)
    best = kmeans1d.cluster(values.astype(float), 1 << nbits, weights=counts.astype(float))
    best_error = squared_error(values.repeat(counts), np.array(best.centroids)[best.clusters].repeat(counts))
    error = squared_error(weight, Histogram(weight).palette(nbits).apply(weight))
    # Rounding the palette to half precision alone costs some of it, where values lie far from zero.
    rounded = np.array(best.centroids).astype(np.float16)[best.clusters].repeat(counts)
    assert error <= 1.02 * max(best_error, squared_error(values.repeat(counts), rounded))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_more_bits_are_nearer(dtype: type) -> None:
    weight = draw("normal", dtype)
    histogram = Histogram(weight)
    errors = [squared_error(weight, histogram.palette(nbits).apply(weight)) for nbits in WIDTHS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0


@pytest.mark.parametrize("nbits", WIDTHS)
def test_a_palette_fits_its_width_and_keeps_shape_and_type(nbits: int) -> None:
    for dtype in (np.float16, np.float32):
        weight = draw("normal", dtype)
        palette = Histogram(weight).palette(nbits)
        assert palette.values.shape == (2**nbits,)
        assert palette.indices(weight).max() < 2**nbits
        small = palette.apply(weight)
        assert (small.shape, small.dtype) == (weight.shape, weight.dtype)
        # Not in half precision: numpy 2.3 sorts that wrongly on some AMD processors, where values repeat.
        assert len(np.unique(small.astype(np.float32))) <= 2**nbits


halves = st.integers(0, 0x7BFF).flatmap(lambda code: st.sampled_from((code, code | 0x8000)))


@given(st.sampled_from(WIDTHS), st.data())
def test_what_has_few_values_stays_as_it_is(nbits: int, data: st.DataObject) -> None:
    codes = data.draw(st.lists(halves, min_size=1, max_size=min(2**nbits, 20), unique=True))
    values = np.array(codes, dtype=np.uint16).view(np.float16)
    weight = np.resize(values, (6, 11))[:, : data.draw(st.integers(1, 11))]
    if len(np.unique(weight.astype(np.float32))) <= 2**nbits:
        assert np.array_equal(Histogram(weight).palette(nbits).apply(weight), weight)


@given(st.lists(halves, min_size=1, max_size=400), st.sampled_from(WIDTHS))
def test_no_element_goes_to_another_value_than_its_nearest(codes: list[int], nbits: int) -> None:
    weight = np.array(codes, dtype=np.uint16).view(np.float16)
    palette = Histogram(weight).palette(nbits)
    distances = np.abs(weight.astype(np.float64)[:, None] - palette.values.astype(np.float64))
    # The values are rounded to half precision after they were found.
    slack = 2.0**-10 * np.abs(weight.astype(np.float64)).max() + 1e-7
    assert (np.abs(weight.astype(np.float64) - palette.apply(weight)) <= distances.min(axis=1) + slack).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_not_finite_has_no_palette(wrong: float, dtype: type) -> None:
    weight = draw("normal", dtype)
    weight[0, 0] = wrong
    with pytest.raises(ModelLoadError, match="NaN or infinite"):
        Histogram(weight)


def test_single_precision_of_any_magnitude_is_clustered() -> None:
    for magnitude in (1e-30, 1e30):
        weight = draw("normal", np.float32) * np.float32(magnitude)
        error = squared_error(weight / magnitude, Histogram(weight).palette(6).apply(weight) / magnitude)
        assert error == pytest.approx(
            squared_error(
                draw("normal", np.float32),
                Histogram(draw("normal", np.float32)).palette(6).apply(draw("normal", np.float32)),
            ),
            rel=0.05,
        )

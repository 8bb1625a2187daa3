"""Finds a weight's palette: the 2ⁿ values that come closest to all its elements.

The clustering is coremltools' own, an exact one-dimensional k-means, on counted values: a float16 has no more than
65,536 of them, so that counting first makes a big weight cost little more than a small one. coremltools itself sorts
all elements to count them, and clusters all values, which takes several times as long for hardly better palettes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from renderkiln.schema.errors import ModelLoadError

_CODES = 1 << 16
_PIECE = 1 << 20
_NOT_FINITE = "it holds NaN or infinite values; convert the model again"
#: Values closer together than this part of the weight's spread are clustered as one. float16 holds most of its values
#: near zero, far closer than any palette's: this makes clustering to 8 bits eight times as fast, for a
#: hundredth more squared error at the most.
_CELLS_IN_SPREAD = 400
#: With fewer cells than this for each value of the palette, all values are clustered.
_CELLS_IN_CLUSTER = 4


@dataclass(frozen=True)
class Palette:
    """The palette of one weight, and where each of its elements goes."""

    #: 2ⁿ values, in the weight's dtype, ascending; the last ones are repeated where fewer are needed.
    values: NDArray[Any]
    #: Index into `values` for each of the 65,536 codes of a float16.
    table: NDArray[np.uint8]
    #: What a float32 weight is divided by before it is read as float16; 1 for a float16 weight.
    scale: float

    def indices(self, weight: NDArray[Any]) -> NDArray[np.uint8]:
        """For each element, flattened, which of `values` takes its place."""
        return self.table[_codes(weight, self.scale)]

    def apply(self, weight: NDArray[Any]) -> NDArray[Any]:
        """The weight as it will be after compression: same shape, same dtype."""
        return self.values[self.indices(weight)].reshape(weight.shape)


class Histogram:
    """How often each value occurs in a weight; gives its palettes of any width."""

    def __init__(self, weight: NDArray[Any]) -> None:
        """Counts a weight (float16 or float32).

        Raises:
            ModelLoadError: it holds NaN or an infinity, which no palette can stand for.
        """
        self._dtype = weight.dtype
        self._scale = 1.0 if weight.dtype == np.float16 else _largest(weight)
        counts = _count(weight, self._scale)
        present = np.flatnonzero(counts).astype(np.uint16)
        values = present.view(np.float16).astype(np.float64)
        if not np.isfinite(values).all():
            raise ModelLoadError(_NOT_FINITE)
        order = np.argsort(values, kind="stable")
        self._codes, self._values = present[order], values[order]
        self._counts = counts[self._codes].astype(np.float64)

    def palette(self, nbits: int) -> Palette:
        """The best palette of `2**nbits` values."""
        centres = self._cluster(1 << nbits)
        values = np.full(1 << nbits, centres[-1] * self._scale).astype(self._dtype)
        values[: centres.size] = centres * self._scale
        table = np.zeros(_CODES, dtype=np.uint8)
        table[self._codes] = np.searchsorted((centres[1:] + centres[:-1]) / 2, self._values)
        return Palette(values=values, table=table, scale=self._scale)

    def _cluster(self, count: int) -> NDArray[np.float64]:
        from coremltools._deps import kmeans1d

        points, weights = self._values, self._counts
        if points.size <= count:
            return points
        spread = np.sqrt(np.average(points**2, weights=weights))
        cells = np.floor(points * (_CELLS_IN_SPREAD / spread))
        first = np.flatnonzero(np.diff(cells, prepend=-np.inf))
        if first.size >= _CELLS_IN_CLUSTER * count:
            sums = np.add.reduceat(points * weights, first)
            weights = np.add.reduceat(weights, first)
            points = sums / weights
        return np.asarray(kmeans1d.cluster(points, count, weights=weights).centroids)


def _largest(weight: NDArray[Any]) -> float:
    """The largest magnitude; 1 where all is zero, so that it can be divided by."""
    largest = float(np.abs(weight).max(initial=0.0))
    if not np.isfinite(largest):
        raise ModelLoadError(_NOT_FINITE)
    return largest or 1.0


def _count(weight: NDArray[Any], scale: float) -> NDArray[np.int64]:
    """How often each code occurs. In pieces, because counting widens what it counts to eight bytes."""
    counts = np.zeros(_CODES, dtype=np.int64)
    flat = weight.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        counts += np.bincount(_codes(flat[start : start + _PIECE], scale), minlength=_CODES)
    return counts


def _codes(weight: NDArray[Any], scale: float) -> NDArray[np.uint16]:
    flat = weight.reshape(-1)
    if flat.dtype != np.float16:
        # Ten bits of mantissa decide to which of at most 256 values an element goes; the values stay float32.
        flat = (flat / scale).astype(np.float16)
    return np.ascontiguousarray(flat).view(np.uint16)

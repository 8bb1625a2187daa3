"""Finds a weight's palette: the 2ⁿ values that come closest to all its elements.

The clustering is coremltools' own (its exact one-dimensional k-means), on counted values: a float16 has no more than
65,536 of them, so counting first makes a big weight cost hardly more than a small one. coremltools itself sorts all
elements of each weight to count them, which takes longer than the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from renderkiln.schema.errors import ModelLoadError

_CODES = 1 << 16
_PIECE = 1 << 20


@dataclass(frozen=True)
class Palette:
    """The palette of one weight, and where each of its elements goes."""

    #: 2ⁿ values, in the weight's dtype; unused ones are zero.
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


def find_palette(weight: NDArray[Any], nbits: int) -> Palette:
    """The best palette of `2**nbits` values for a weight (float16 or float32).

    Raises:
        ModelLoadError: the weight holds NaN or an infinity, which no palette can stand for.
    """
    from coremltools._deps import kmeans1d

    scale = 1.0 if weight.dtype == np.float16 else float(np.abs(weight).max(initial=0.0)) or 1.0
    counts = _count(weight, scale)
    present = np.flatnonzero(counts).astype(np.uint16)
    if not np.isfinite(scale) or not np.isfinite(present.view(np.float16)).all():
        raise ModelLoadError("it holds NaN or infinite values; convert the model again")
    order = np.argsort(present.view(np.float16), kind="stable")
    present = present[order]
    points = present.view(np.float16).astype(np.float64)
    found = kmeans1d.cluster(points, 1 << nbits, weights=counts[present].astype(np.float64))
    values = np.zeros(1 << nbits, dtype=weight.dtype)
    values[: len(found.centroids)] = np.asarray(found.centroids) * scale
    table = np.zeros(_CODES, dtype=np.uint8)
    table[present] = found.clusters
    return Palette(values=values, table=table, scale=scale)


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

"""What every runtime asks of the arrays that it is given, before it does anything with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from renderkiln.schema.errors import PredictionError, did_you_mean

from .base import Array


class Expected(Protocol):
    """What is known of one input."""

    def complaint(self, array: Array) -> str | None:
        """What is wrong with an array that is meant for it, or None."""


def check_inputs(model: str, expected: Mapping[str, Expected], given: Mapping[str, Array]) -> None:
    """Raises PredictionError if an input is missing, unknown, or does not fit. `model`: its name in the message."""
    for name in given:
        if name not in expected:
            raise PredictionError(f"{model} has no input {name!r}.{did_you_mean(name, expected)}")
    missing = [name for name in expected if name not in given]
    if missing:
        raise PredictionError(f"{model} needs the input {missing[0]}")
    for name, info in expected.items():
        array = given[name]
        if not isinstance(array, np.ndarray):
            raise PredictionError(f"{name} must be a numpy array, and is {type(array).__name__}")
        wrong = info.complaint(array)
        if wrong is not None:
            raise PredictionError(wrong)

"""The operations of an ML program, by family. Importing this registers them all."""

from . import (
    activations,
    combining,
    convolution,
    elementwise,
    gathering,
    linear,
    normalization,
    reductions,
    resizing,
    shaping,
    slicing,
)
from .registry import BUILDERS, Bound, Call, Function, op

__all__ = [
    "BUILDERS",
    "Bound",
    "Call",
    "Function",
    "activations",
    "combining",
    "convolution",
    "elementwise",
    "gathering",
    "linear",
    "normalization",
    "op",
    "reductions",
    "resizing",
    "shaping",
    "slicing",
]

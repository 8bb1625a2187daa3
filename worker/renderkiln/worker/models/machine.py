"""Which variant of a converted model, and which compute unit, suit this machine.

The rule is that of Diffusers for Mac: without a Neural Engine the original attention; with eight or more performance
cores, which come with a large GPU, the original attention on the GPU; otherwise the attention that was rewritten for
the Neural Engine, there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from renderkiln.home.machine import read_machine

from .layout import CoreMLVariant

#: From so many performance cores on (the Max and Ultra chips) the GPU is faster than the Neural Engine.
_MANY_CORES = 8


@dataclass(frozen=True)
class Chip:
    """What the rule asks of a machine."""

    has_neural_engine: bool
    #: The physical ones; 0 where the system does not say.
    performance_cores: int


class Advice(NamedTuple):
    """What suits a machine."""

    variant: CoreMLVariant
    compute_unit: Literal["cpu_and_gpu", "cpu_and_ne"]


def choose(chip: Chip) -> Advice:
    """What suits a chip."""
    if not chip.has_neural_engine or chip.performance_cores >= _MANY_CORES:
        return Advice("original", "cpu_and_gpu")
    return Advice("split-einsum", "cpu_and_ne")


@lru_cache(maxsize=1)
def advice() -> Advice:
    """What suits this machine; where it is no Mac, what every system can run."""
    return choose(read_chip())


def read_chip() -> Chip:
    """This machine's chip. A system that is no Mac has no Neural Engine."""
    machine = read_machine()
    return Chip(machine.has_neural_engine, machine.performance_cores or 0)

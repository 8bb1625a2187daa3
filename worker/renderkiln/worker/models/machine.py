"""Which variant of a converted model, and which compute unit, suit this machine.

The rule is that of Diffusers for Mac: without a Neural Engine the original attention; with eight or more performance
cores, which come with a large GPU, the original attention on the GPU; otherwise the attention that was rewritten for
the Neural Engine, there.
"""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from .layout import Variant

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

    variant: Variant
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
    """This machine's chip, as sysctl has it on macOS."""
    if platform.system() != "Darwin":
        return Chip(has_neural_engine=False, performance_cores=0)
    # Every Apple chip of a Mac has a Neural Engine; a virtual machine on one does not see it.
    is_apple = _sysctl("hw.optional.arm64") == 1 and _sysctl("kern.hv_vmm_present") != 1
    return Chip(has_neural_engine=is_apple, performance_cores=_sysctl("hw.perflevel0.physicalcpu") or 0)


def _sysctl(name: str) -> int | None:
    try:
        said = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = said.stdout.strip()
    return int(text) if said.returncode == 0 and text.isdigit() else None

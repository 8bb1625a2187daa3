"""The system that Core ML is part of: whether this is macOS, which one, and which of its units a model may use."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import lru_cache
from typing import Literal, get_args

#: What a model may run on: coremltools' names in small letters; ne is the Neural Engine.
ComputeUnit = Literal["all", "cpu_and_gpu", "cpu_and_ne", "cpu_only"]
COMPUTE_UNITS: tuple[ComputeUnit, ...] = get_args(ComputeUnit)

#: Since when Core ML takes hints, and several functions in one model.
MACOS_WITH_HINTS = (15, 0)


def on_macos() -> bool:
    """Whether Core ML is part of this system."""
    return sys.platform == "darwin"


@lru_cache(maxsize=1)
def macos_version() -> tuple[int, ...]:
    """Such as (15, 6); empty elsewhere."""
    return tuple(int(part) for part in platform.mac_ver()[0].split(".") if part.isdigit())


@lru_cache(maxsize=1)
def system_build() -> str:
    """The build of the system, such as `24G84`: what Core ML compiled belongs to it.

    Where this is not macOS, or `sw_vers` does not answer, the system's name and release take its place.
    """
    if on_macos():
        try:
            said = subprocess.run(["sw_vers", "-buildVersion"], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            said = None
        if said is not None and said.returncode == 0 and said.stdout.strip().isalnum():
            return said.stdout.strip()
    name = f"{platform.system()}-{platform.release()}"
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name)

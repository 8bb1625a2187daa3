"""The system that Core ML is part of: whether this is macOS, which one, and which of its units a model may use."""

from __future__ import annotations

import importlib.util
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
#: pyobjc's module of the framework with macOS's multilingual text encoder, and the macOS that has that first.
TEXT_FRAMEWORK, _MACOS_WITH_TEXT = "NaturalLanguage", 14


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


def why_no_text_encoder() -> str | None:
    """What this system lacks for macOS's multilingual text encoder, as the end of a sentence; None: nothing."""
    has_framework = importlib.util.find_spec(TEXT_FRAMEWORK) is not None
    return complaint_about_system(platform.system(), platform.mac_ver()[0], has_framework)


def complaint_about_system(system: str, macos: str, has_framework: bool) -> str | None:
    """What a system lacks for its text encoder, as the end of a sentence; None: nothing.

    Args:
        system: as `platform.system` says it.
        macos: the version, such as `15.6`; empty elsewhere.
        has_framework: whether pyobjc's NaturalLanguage is installed.
    """
    if system != "Darwin":
        return "needs a worker on macOS 14 or later; elsewhere there is no such encoder"
    major = macos.partition(".")[0]
    if not major.isdigit() or int(major) < _MACOS_WITH_TEXT:
        return f"needs macOS 14 or later, and this is {macos or 'an unknown one'}"
    if not has_framework:
        return "needs pyobjc's NaturalLanguage: pip install 'renderkiln[worker,coreml]'"
    return None

"""What a measurement was made on and of: machine, system, versions, model. No names of hosts or people, no paths."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import psutil

from renderkiln.home.origin import read_origin
from renderkiln.schema.errors import ModelLoadError

from ..models.layout import variants
from ..runtimes import manifest
from ..runtimes.apple import system
from .records import Candidate


class Machine(NamedTuple):
    """What matters of a machine."""

    #: Such as `Apple M2 Ultra (Mac14,14)`.
    device: str
    #: Such as `macOS 15.6 (24G84)`.
    system: str
    memory_bytes: int


class ModelFacts(NamedTuple):
    """Which model it was, for somebody who wants to measure the same."""

    #: Its repository on the Hub where it came from there, else its name here.
    name: str
    #: A commit, where it is known.
    revision: str | None
    #: Bits for each weight of the UNet; None where that is not known, and for torch.
    bits: float | None


def this_machine() -> Machine:
    """This one."""
    memory = psutil.virtual_memory().total
    if not system.on_macos():
        return Machine(f"{platform.machine()}, {os.cpu_count()} cores", platform.system(), memory)
    chip, model = _sysctl("machdep.cpu.brand_string"), _sysctl("hw.model")
    release = ".".join(map(str, system.macos_version()))
    return Machine(f"{chip} ({model})" if model else chip, f"macOS {release} ({system.system_build()})", memory)


def facts_of(name: str, folder: Path, candidate: Candidate) -> ModelFacts:
    """A model's facts. What cannot be read is not known."""
    repository = revision = bits = None
    try:
        origin = read_origin(folder)
        if origin is not None:
            repository, revision = origin.repository, origin.revision
        if candidate.engine == "coreml":
            converted = manifest.read(variants(folder)[candidate.variant])
            unet = converted.stages.get("unet") or converted.stages.get("control-unet")
            bits = unet.bits if unet else None
            revision = revision or converted.revision
    except ModelLoadError:
        pass
    return ModelFacts(repository or name, revision, bits)


def our_versions(candidate: Candidate) -> dict[str, str]:
    """Of renderkiln, and of coremltools where that ran the model."""
    names = ["renderkiln", *(["coremltools"] if candidate.engine == "coreml" and system.on_macos() else [])]
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _sysctl(name: str) -> str:
    try:
        said = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.strip()

"""What a measurement was made on and of: machine, system, versions, model. No names of hosts or people, no paths."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from renderkiln.home.machine import read_machine
from renderkiln.home.origin import read_origin
from renderkiln.schema.errors import ModelLoadError

from ..models.layout import variants
from ..runtimes import manifest
from ..runtimes.apple.system import on_macos, system_build
from .records import Candidate


class Where(NamedTuple):
    """What matters of a machine."""

    #: Its chip, such as `Apple M2 Ultra`.
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


def this_machine() -> Where:
    """This one."""
    machine = read_machine()
    release = ".".join(map(str, machine.macos))
    name = f"macOS {release} ({system_build()})" if machine.macos else machine.system
    return Where(f"{machine.chip or machine.architecture}, {machine.cores} cores", name, machine.memory)


def facts_of(name: str, folder: Path, candidate: Candidate) -> ModelFacts:
    """A model's facts. What cannot be read is not known."""
    repository = revision = bits = None
    try:
        origin = read_origin(folder)
        if origin is not None:
            repository, revision = origin.repository, origin.revision
        if candidate.is_converted:
            converted = manifest.read(variants(folder)[candidate.variant])
            unet = converted.stages.get("unet") or converted.stages.get("control-unet")
            bits = unet.bits if unet else None
            revision = revision or converted.revision
    except ModelLoadError:
        pass
    return ModelFacts(repository or name, revision, bits)


def our_versions(candidate: Candidate) -> dict[str, str]:
    """Of renderkiln, and of what ran the model where that is Apple's."""
    names = ["renderkiln"]
    if candidate.engine == "coreml" and on_macos():
        names.append("coremltools")
    if candidate.engine == "coreai":
        names.append("coreai-core")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

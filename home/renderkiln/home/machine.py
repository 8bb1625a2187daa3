"""What this machine is: its system, chip and memory. Asks the system alone, with a limit on each question."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

#: Seconds in which the system must answer.
_PATIENCE = 2.0
_CPUINFO = Path("/proc/cpuinfo")
_SYSCTL = (
    "machdep.cpu.brand_string",
    "hw.optional.arm64",
    "kern.hv_vmm_present",
    "sysctl.proc_translated",
    "hw.perflevel0.physicalcpu",
)


@dataclass(frozen=True)
class Machine:
    """What a machine says of itself; None where it does not say."""

    #: Darwin or Linux.
    system: str
    #: Such as (15, 6) on macOS; empty elsewhere.
    macos: tuple[int, ...]
    #: Of the kernel.
    release: str
    #: Such as arm64, as this process sees it.
    architecture: str
    chip: str | None
    has_neural_engine: bool
    is_virtual: bool
    #: Whether this process was made for Intel and is translated by Rosetta.
    is_translated: bool
    #: Physical ones, where the chip has several kinds of cores.
    performance_cores: int | None
    cores: int
    #: Bytes.
    memory: int
    available: int


def read_machine() -> Machine:
    """This machine. On macOS sysctl is asked once; every Apple chip of a Mac has a Neural Engine, which a virtual
    machine on one does not see."""
    system = platform.system()
    said = _sysctl() if system == "Darwin" else {}
    memory = psutil.virtual_memory()
    is_apple, is_virtual = said.get("hw.optional.arm64") == "1", said.get("kern.hv_vmm_present") == "1"
    performance_cores = said.get("hw.perflevel0.physicalcpu", "")
    return Machine(
        system=system,
        macos=tuple(int(part) for part in platform.mac_ver()[0].split(".") if part.isdigit()),
        release=platform.release(),
        architecture=platform.machine(),
        chip=said.get("machdep.cpu.brand_string") or _chip_of_linux(),
        has_neural_engine=is_apple and not is_virtual,
        is_virtual=is_virtual,
        is_translated=said.get("sysctl.proc_translated") == "1",
        performance_cores=int(performance_cores) if performance_cores.isdigit() else None,
        cores=psutil.cpu_count() or 1,
        memory=memory.total,
        available=memory.available,
    )


def _sysctl() -> dict[str, str]:
    """Values by name. A name that this system does not have is left out, and makes sysctl end with 1."""
    try:
        said = subprocess.run(["/usr/sbin/sysctl", *_SYSCTL], capture_output=True, text=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition(": ") for line in said.stdout.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _chip_of_linux() -> str | None:
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)

"""The machine: whether its system, its chip and its memory are fit to render."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version

from renderkiln.home.checkup import Finding, ok, problem, size, warning
from renderkiln.home.machine import Machine, read_machine
from renderkiln.home.settings import Settings

#: Since when Core ML runs Stable Diffusion's models, and since when it keeps their weights small in memory.
_CORE_ML, _SMALL_WEIGHTS = (13, 1), (14, 0)
#: Bytes. Below the first not even a small model fits; below the second, SDXL hardly does.
_LITTLE_MEMORY, _SOME_MEMORY = 6e9, 12e9
_LITTLE_LEFT = 1.5e9


def check_machine(_settings: Settings) -> list[Finding]:
    """This machine and this Python."""
    machine = read_machine()
    return [_ourselves(), judge_system(machine), judge_chip(machine), judge_memory(machine)]


def judge_system(machine: Machine) -> Finding:
    """Whether the system has what renders."""
    if machine.system != "Darwin":
        says = f"{machine.system} {machine.release}, {machine.architecture}: no Core ML, whose models run slowly here"
        return ok("system", says, system=machine.system, release=machine.release)
    number = ".".join(map(str, machine.macos))
    facts = {"system": "macOS", "release": number}
    if machine.macos < _CORE_ML:
        says = f"macOS {number} cannot run Core ML models of Stable Diffusion, which need 13.1"
        return problem("system", says, "update macOS", **facts)
    if machine.macos < _SMALL_WEIGHTS:
        says = f"macOS {number} unpacks compressed weights when a model is loaded; 14 keeps them small in memory"
        return warning("system", says, "update macOS", **facts)
    return ok("system", f"macOS {number}", **facts)


def judge_chip(machine: Machine) -> Finding:
    """Whether the chip is used for what it is."""
    chip = machine.chip or machine.architecture
    cores = f"{machine.cores} cores"
    if machine.performance_cores:
        cores += f", {machine.performance_cores} of them fast"
    engine = "with a Neural Engine" if machine.has_neural_engine else "no Neural Engine"
    facts = {"chip": chip, "cores": machine.cores, "neural_engine": machine.has_neural_engine}
    if machine.is_translated:
        do = "install a Python for Apple silicon (`brew install python@3.12`), and renderkiln into that one"
        return problem(
            "chip", f"{chip}, and this Python is made for Intel: neither GPU nor Core ML serve it", do, **facts
        )
    if machine.system != "Darwin":
        return ok("chip", f"{chip}, {cores}", **facts)
    if machine.is_virtual:
        return warning("chip", f"{chip}, {cores}, a virtual machine: {engine}", "render on a real Mac", **facts)
    return ok("chip", f"{chip}, {cores}, {engine}", **facts)


def judge_memory(machine: Machine) -> Finding:
    """Whether a model fits into memory."""
    facts = {"total_bytes": machine.memory, "available_bytes": machine.available}
    says = f"{size(machine.memory)}, {size(machine.available)} of it available"
    if machine.memory < _LITTLE_MEMORY:
        return warning("memory", says, "use small models, of 6 bits (`renderkiln convert --nbits 6`)", **facts)
    if machine.available < _LITTLE_LEFT:
        return warning("memory", f"{says}: a model may not fit", "end other programs before rendering", **facts)
    note = "" if machine.memory >= _SOME_MEMORY else "; for SDXL, use 6-bit models"
    return ok("memory", says + note, **facts)


def _ourselves() -> Finding:
    ours, python = version("renderkiln"), platform.python_version()
    return ok("renderkiln", f"{ours} on Python {python} ({sys.executable})", version=ours, python=python)

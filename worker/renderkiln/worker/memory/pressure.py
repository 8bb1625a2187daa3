"""How short of memory the machine is: what the system says of it (`Probe`), and what that means (`judge`, `Watch`).

The macOS part of the probe is written against Apple's headers and has not run on a Mac yet.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

from renderkiln.schema.workers import MemoryPressure

from .cgroups import Cgroups
from .kernel_files import counts, read, stall

# A plain bool: the type checker would else look at one system's branches only.
_MACOS: bool = sys.platform == "darwin"
#: Seconds over which swap is looked at.
_SWAP_WINDOW = 60.0


class Level(IntEnum):
    """How short of memory the machine is."""

    CALM = 0
    #: What is not needed soon should go.
    WARN = 1
    #: All that can go should go, before the system ends processes.
    CRITICAL = 2

    @property
    def word(self) -> MemoryPressure:
        """As it is shown, announced and written down."""
        return _WORDS[self]


_WORDS: dict[Level, MemoryPressure] = {Level.CALM: "calm", Level.WARN: "warn", Level.CRITICAL: "critical"}
#: What `kern.memorystatus_vm_pressure_level` tells: NOTE_MEMORYSTATUS_PRESSURE_* of XNU's bsd/sys/event.h, the same as
#: DISPATCH_MEMORYPRESSURE_* of dispatch/source.h. Not the kernel's own levels, 0 to 3: it converts those
#: (bsd/kern/kern_memorystatus_notify.c).
_MACOS_LEVELS = {1: Level.CALM, 2: Level.WARN, 4: Level.CRITICAL}


@dataclass(frozen=True)
class Sample:
    """What the system says of its memory at one moment."""

    #: Seconds of the monotonic clock.
    at: float
    #: What this process and all others may have together: the machine's memory, or a container's limit.
    total_bytes: int
    #: What can be had without swapping.
    available_bytes: int
    swap_used_bytes: int
    #: macOS's own judgement; None elsewhere.
    system: Level | None
    #: Percent of the last ten seconds in which some process, or all, waited for memory; None where Linux does not tell.
    stall: float | None
    stall_full: float | None


@dataclass(frozen=True)
class Thresholds:
    """From where on memory is short."""

    #: Percent of the total; less is short.
    available_warn: float = 10.0
    available_critical: float = 5.0
    #: Percent of the time in which some process waits for memory; as much is short.
    stall_warn: float = 10.0
    stall_critical: float = 40.0
    #: By how much swap grows within a minute; as much is short. How much is in use says little: macOS keeps it in use
    #: long after memory was short.
    swap_growth_bytes: int = 256_000_000
    #: Seconds without a sample as bad before a level is left for a lower one.
    calm: float = 60.0


class Verdict(NamedTuple):
    """A level, and what it comes from in plain words."""

    level: Level
    why: str


def judge(sample: Sample, swap_grown_bytes: int, thresholds: Thresholds) -> Verdict:
    """What a sample means, and by how much swap grew within a minute; the worst finding counts.

    macOS judges by itself, and what psutil calls available is little there on a small Mac that is well; so what is
    available counts elsewhere alone.
    """
    findings = [_judge_available(sample, thresholds)] if sample.system is None else []
    if sample.stall is not None:
        level = _level(sample.stall >= thresholds.stall_warn, sample.stall >= thresholds.stall_critical)
        findings.append(Verdict(level, f"processes waited {_percent(sample.stall)} of the time for memory"))
    if swap_grown_bytes >= thresholds.swap_growth_bytes:
        findings.append(Verdict(Level.WARN, f"swap grew by {_gigabytes(swap_grown_bytes)} within a minute"))
    if sample.system is not None:
        adjective = {Level.CALM: "no ", Level.WARN: "", Level.CRITICAL: "critical "}[sample.system]
        findings.append(Verdict(sample.system, f"macOS reports {adjective}memory pressure"))
    return max(findings, key=lambda finding: finding.level)


class Watch:
    """Follows samples: rises at once, and falls only after a calm time, so that it does not go to and fro.

    A fall goes to the highest level that was seen in the calm time. One thread feeds it; it never looks at a clock.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._held: Verdict | None = None
        #: What was found since the level held was last found, and when.
        self._lower: list[tuple[float, Verdict]] = []
        #: When swap was how large, rising: the first is the least of the last minute.
        self._swap: deque[tuple[float, int]] = deque()

    def feed(self, sample: Sample) -> Verdict:
        """The level from now on. While a level is only kept, its reason is the last that there was for it."""
        found = judge(sample, self._swap_growth(sample), self._thresholds)
        if self._held is None or found.level >= self._held.level:
            self._held, self._lower = found, []
            return found
        self._lower.append((sample.at, found))
        if sample.at - self._lower[0][0] < self._thresholds.calm:
            return self._held
        highest = max(verdict.level for _, verdict in self._lower)
        last = max(index for index, (_, verdict) in enumerate(self._lower) if verdict.level == highest)
        self._held, self._lower = self._lower[last][1], self._lower[last + 1 :]
        return self._held

    def _swap_growth(self, sample: Sample) -> int:
        """Bytes since swap was least in the last minute."""
        while self._swap and self._swap[-1][1] >= sample.swap_used_bytes:
            self._swap.pop()
        self._swap.append((sample.at, sample.swap_used_bytes))
        while self._swap[0][0] < sample.at - _SWAP_WINDOW:
            self._swap.popleft()
        return sample.swap_used_bytes - self._swap[0][1]


class Probe:
    """Asks the system. On Linux, what the cgroups of this process leave it counts as the machine.

    What the system does not tell, or tells in a way that makes no sense, never makes memory look short.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._meminfo = root / "proc/meminfo"
        self._pressure = root / "proc/pressure/memory"
        self._cgroups = Cgroups(root)
        self._on_macos = _MACOS and root == Path("/")

    def read(self) -> Sample:
        """How things are now. Raises nothing; takes far less than a millisecond."""
        return _read_macos() if self._on_macos else self._read_linux()

    def _read_linux(self) -> Sample:
        at, told = time.monotonic(), counts(read(self._meminfo))
        machine = told.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        room = self._cgroups.room(machine)
        total = machine if room.total is None else room.total
        swap = told.get("SwapTotal", 0)
        available = total if room.available is None else room.available
        # The machine's stalls are those of all groups, also of a neighbour who has used up a limit of his own, which is
        # no matter of this process's: where it has a limit, what is felt inside that counts.
        felt = room.stall if room.stall.some is not None else stall(read(self._pressure))
        return Sample(
            at=at,
            total_bytes=total,
            available_bytes=min(available, told.get("MemAvailable", available)),
            swap_used_bytes=max(0, swap - told.get("SwapFree", swap)),
            system=None,
            stall=felt.some,
            stall_full=felt.full,
        )


def _read_macos() -> Sample:
    memory = psutil.virtual_memory()
    value, size = ctypes.c_uint32(), ctypes.c_size_t(ctypes.sizeof(ctypes.c_uint32))
    ask = _sysctlbyname()
    told = ask(b"kern.memorystatus_vm_pressure_level", ctypes.byref(value), ctypes.byref(size), None, 0) == 0
    return Sample(
        at=time.monotonic(),
        total_bytes=memory.total,
        available_bytes=min(memory.available, memory.total),
        swap_used_bytes=psutil.swap_memory().used,
        system=_MACOS_LEVELS.get(value.value) if told else None,
        stall=None,
        stall_full=None,
    )


@cache
def _sysctlbyname() -> Callable[..., int]:
    """`int sysctlbyname(const char *, void *, size_t *, void *, size_t)` of sys/sysctl.h; 0 means that it was told."""
    function = ctypes.CDLL(None).sysctlbyname
    function.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    function.restype = ctypes.c_int
    return function


def _judge_available(sample: Sample, thresholds: Thresholds) -> Verdict:
    if sample.total_bytes <= 0:
        return Verdict(Level.CALM, "how much memory is available is not known")
    share = 100 * sample.available_bytes / sample.total_bytes
    level = _level(share < thresholds.available_warn, share < thresholds.available_critical)
    return Verdict(level, f"{_percent(share)} of memory ({_gigabytes(sample.available_bytes)}) is available")


def _level(is_short: bool, is_critical: bool) -> Level:
    return Level.CRITICAL if is_critical else Level.WARN if is_short else Level.CALM


def _percent(share: float) -> str:
    return f"{share:.1f} %" if share < 10 else f"{share:.0f} %"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"

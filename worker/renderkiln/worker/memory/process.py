"""Memory of a process: what it holds, what it held at most, and how it gives back what it freed.

What counts is what the system counts when memory is short. On Linux that is what is resident. On macOS it is the
physical footprint, Activity Monitor's "Memory": it includes memory of the GPU and what was compressed, and leaves out
files that are only mapped. The macOS part is written against Apple's headers and has not run on a Mac yet.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import psutil

from .kernel_files import counts, read

# Plain bools: the type checker would else look at one system's branches only.
_MACOS: bool = sys.platform == "darwin"
_LINUX: bool = sys.platform == "linux"
_LIBPROC = "/usr/lib/libproc.dylib"
_RUSAGE_INFO_V4 = 4
#: See "clear_refs" in proc(5).
_RESET_PEAK = "5"


class _RusageInfoV4(ctypes.Structure):
    """`struct rusage_info_v4` of XNU's bsd/sys/resource.h, 296 bytes; each version adds fields to the one before."""

    _fields_ = (
        ("ri_uuid", ctypes.c_uint8 * 16),
        # V0
        ("ri_user_time", ctypes.c_uint64),
        ("ri_system_time", ctypes.c_uint64),
        ("ri_pkg_idle_wkups", ctypes.c_uint64),
        ("ri_interrupt_wkups", ctypes.c_uint64),
        ("ri_pageins", ctypes.c_uint64),
        ("ri_wired_size", ctypes.c_uint64),
        ("ri_resident_size", ctypes.c_uint64),
        ("ri_phys_footprint", ctypes.c_uint64),
        ("ri_proc_start_abstime", ctypes.c_uint64),
        ("ri_proc_exit_abstime", ctypes.c_uint64),
        # V1
        ("ri_child_user_time", ctypes.c_uint64),
        ("ri_child_system_time", ctypes.c_uint64),
        ("ri_child_pkg_idle_wkups", ctypes.c_uint64),
        ("ri_child_interrupt_wkups", ctypes.c_uint64),
        ("ri_child_pageins", ctypes.c_uint64),
        ("ri_child_elapsed_abstime", ctypes.c_uint64),
        # V2
        ("ri_diskio_bytesread", ctypes.c_uint64),
        ("ri_diskio_byteswritten", ctypes.c_uint64),
        # V3
        ("ri_cpu_time_qos_default", ctypes.c_uint64),
        ("ri_cpu_time_qos_maintenance", ctypes.c_uint64),
        ("ri_cpu_time_qos_background", ctypes.c_uint64),
        ("ri_cpu_time_qos_utility", ctypes.c_uint64),
        ("ri_cpu_time_qos_legacy", ctypes.c_uint64),
        ("ri_cpu_time_qos_user_initiated", ctypes.c_uint64),
        ("ri_cpu_time_qos_user_interactive", ctypes.c_uint64),
        ("ri_billed_system_time", ctypes.c_uint64),
        ("ri_serviced_system_time", ctypes.c_uint64),
        # V4
        ("ri_logical_writes", ctypes.c_uint64),
        ("ri_lifetime_max_phys_footprint", ctypes.c_uint64),
        ("ri_instructions", ctypes.c_uint64),
        ("ri_cycles", ctypes.c_uint64),
        ("ri_billed_energy", ctypes.c_uint64),
        ("ri_serviced_energy", ctypes.c_uint64),
        ("ri_interval_max_phys_footprint", ctypes.c_uint64),
        ("ri_runnable_time", ctypes.c_uint64),
    )


def resident_bytes(pid: int) -> int | None:
    """Bytes that a process holds now; None if it is gone, also where nobody has waited for it yet."""
    if _LINUX:
        return _status(pid).get("VmRSS")
    usage = _usage(pid) if _MACOS else None
    if usage is not None:
        # One that has ended keeps its usage until its parent asks, with a footprint of 0 (XNU's bsd/kern/kern_exit.c).
        return None if usage.ri_proc_exit_abstime else int(usage.ri_phys_footprint)
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, ValueError):  # ValueError: no number of a process
        return None


def peak_bytes(pid: int) -> int | None:
    """The most bytes that a process held since `reset_peak`, or ever on macOS; None if that cannot be had."""
    if _LINUX:
        return _status(pid).get("VmHWM")
    usage = _usage(pid) if _MACOS else None
    if usage is None or usage.ri_proc_exit_abstime:
        return None
    return int(usage.ri_lifetime_max_phys_footprint)


def reset_peak(pid: int) -> bool:
    """Has `peak_bytes` count from now on; whether that worked. Linux only, and only for processes of one's own."""
    if not _LINUX:
        return False
    try:
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def hand_back() -> None:
    """Asks the C library to return what this process has freed to the system; some keep gigabytes for later.

    Takes some 30 ms for a gigabyte. Does nothing where the C library has no such call, as musl.
    """
    _hand_back()()


@cache
def _hand_back() -> Callable[[], object]:
    """glibc's `malloc_trim` (malloc.h), or `malloc_zone_pressure_relief` (malloc/malloc.h of macOS): NULL is for all
    zones, and a goal of 0 for as much as there is."""
    library = ctypes.CDLL(None)
    try:
        if _MACOS:
            relieve = library.malloc_zone_pressure_relief
            relieve.argtypes, relieve.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_size_t
            return partial(relieve, None, 0)
        trim = library.malloc_trim
    except AttributeError:
        return lambda: None
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return partial(trim, 0)


def _status(pid: int) -> dict[str, int]:
    """Sizes by name, in bytes; none of a process that is gone."""
    return counts(read(Path(f"/proc/{pid}/status")))


def _usage(pid: int) -> _RusageInfoV4 | None:
    """None where the process is gone, or is another user's."""
    ask = _proc_pid_rusage()
    usage = _RusageInfoV4()
    return usage if ask is not None and ask(pid, _RUSAGE_INFO_V4, ctypes.byref(usage)) == 0 else None


@cache
def _proc_pid_rusage() -> Callable[..., int] | None:
    """`int proc_pid_rusage(int pid, int flavor, rusage_info_t *buffer)` of libproc.h. That type is a `void *`, but what
    it takes is the address of the structure itself. 0 means that it was filled."""
    try:
        function = ctypes.CDLL(_LIBPROC).proc_pid_rusage
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p), ctypes.c_int
    return function

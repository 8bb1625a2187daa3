"""Memory of real processes, and the macOS calls against a pretended libproc where this is no Mac."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from renderkiln.worker.memory import process
from renderkiln.worker.memory.process import hand_back, peak_bytes, reset_peak, resident_bytes

MEGA = 1_000_000
SIZE = 100 * MEGA

_HOLDS_AND_FREES = f"""
print("up", flush=True)
input()
block = bytearray(b"1") * {SIZE}
print("holds", flush=True)
input()
del block
print("freed", flush=True)
input()
"""

# Small blocks are not mapped one by one, and the last one, which stays, keeps glibc from giving back those before it.
_FREES_SMALL_BLOCKS = f"""
import ctypes
from renderkiln.worker.memory.process import hand_back
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
print("up", flush=True)
input()
blocks = [library.malloc(50_000) for _ in range({SIZE} // 50_000)]
for block in blocks:
    ctypes.memset(block, 1, 50_000)
for block in blocks[:-1]:
    library.free(block)
print("freed", flush=True)
input()
hand_back()
print("handed back", flush=True)
input()
"""


class Child:
    """A process that goes on to its next word when told."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self._process = process

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.says()


@contextmanager
def child(code: str) -> Iterator[Child]:
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        try:
            yield Child(started)
        finally:
            started.kill()


def resident(pid: int) -> int:
    found = resident_bytes(pid)
    assert found is not None
    return found


def peak(pid: int) -> int:
    found = peak_bytes(pid)
    assert found is not None
    return found


def test_what_a_process_holds_and_held() -> None:
    with child(_HOLDS_AND_FREES) as other:
        assert other.says() == "up"
        before = resident(other.pid)
        assert MEGA < before < 80 * MEGA
        assert other.go_on() == "holds"
        held = resident(other.pid)
        assert held - before == pytest.approx(SIZE, abs=5 * MEGA)
        assert other.go_on() == "freed"
        assert resident(other.pid) == pytest.approx(before, abs=5 * MEGA)
        assert peak(other.pid) == pytest.approx(held, abs=5 * MEGA)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS counts peaks for a process's whole life")
def test_a_peak_is_counted_anew() -> None:
    with child(_HOLDS_AND_FREES) as other:
        assert [other.says(), other.go_on(), other.go_on()] == ["up", "holds", "freed"]
        assert peak(other.pid) - resident(other.pid) > SIZE - 5 * MEGA
        assert reset_peak(other.pid)
        assert peak(other.pid) == pytest.approx(resident(other.pid), abs=5 * MEGA)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep other things")
def test_freed_memory_goes_back_to_the_system() -> None:
    with child(_FREES_SMALL_BLOCKS) as other:
        assert [other.says(), other.go_on()] == ["up", "freed"]
        kept = resident(other.pid)
        assert kept > SIZE
        assert other.go_on() == "handed back"
        assert kept - resident(other.pid) > SIZE - 5 * MEGA


def test_handing_back_hurts_nobody() -> None:
    kept = bytearray(b"1") * MEGA
    for _ in range(3):
        hand_back()
    assert kept == b"1" * MEGA
    assert process._hand_back() is process._hand_back()


def test_no_call_to_hand_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())  # musl has none
    process._hand_back.cache_clear()
    try:
        hand_back()
        assert process._hand_back()() is None
    finally:
        process._hand_back.cache_clear()


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        # Ended, and nobody has waited for it: its number is still taken.
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert [resident_bytes(ended.pid), peak_bytes(ended.pid)] == [None, None]
    assert [resident_bytes(ended.pid), peak_bytes(ended.pid)] == [None, None]
    assert not reset_peak(ended.pid)
    assert [resident_bytes(-1), peak_bytes(-1)] == [None, None]


def test_this_process_is_like_any_other() -> None:
    assert 10 * MEGA < resident(os.getpid()) <= peak(os.getpid()) + 5 * MEGA


def test_the_supervisor_can_import_it() -> None:
    code = (
        "import sys, renderkiln.worker.memory.pressure, renderkiln.worker.memory.process\n"
        "print([name for name in ('torch', 'numpy', 'renderkiln.worker.engine') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_layout_is_apples() -> None:
    # As a C compiler has it for XNU's sys/resource.h: 16 bytes, then 35 numbers of 8.
    usage = process._RusageInfoV4
    assert ctypes.sizeof(usage) == 296
    assert [usage.ri_phys_footprint.offset, usage.ri_proc_exit_abstime.offset] == [16 + 7 * 8, 16 + 9 * 8]
    assert usage.ri_lifetime_max_phys_footprint.offset == 16 + 28 * 8


_NOW, _EVER, _RSS_OF_ANOTHER = 3_000 * MEGA, 5_000 * MEGA, 7
_LIVES, _ENDED, _ANOTHERS = 1, 2, 3


def _pretended(pid: int, flavor: int, buffer: int) -> int:
    """Fills what it is given as the kernel does: by offset."""
    assert flavor == 4
    if pid == _ANOTHERS:
        return -1
    numbers = (ctypes.c_uint64 * 37).from_address(buffer)
    ended = pid == _ENDED
    numbers[2 + 7], numbers[2 + 9], numbers[2 + 28] = 0 if ended else _NOW, int(ended), _EVER
    return 0


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this is no Mac: its way through the module, with a libproc in C's calling convention that is made up."""

    class Another:
        def __init__(self, _pid: int) -> None: ...

        def memory_info(self) -> Another:
            return self

        rss = _RSS_OF_ANOTHER

    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(_pretended)
    monkeypatch.setattr(process, "_MACOS", True)
    monkeypatch.setattr(process, "_LINUX", False)
    monkeypatch.setattr(process, "_proc_pid_rusage", lambda: function)
    monkeypatch.setattr(psutil, "Process", Another)


@pytest.mark.usefixtures("mac")
def test_a_mac_tells_the_footprint() -> None:
    assert (resident_bytes(_LIVES), peak_bytes(_LIVES)) == (_NOW, _EVER)
    assert (resident_bytes(_ENDED), peak_bytes(_ENDED)) == (None, None)
    assert not reset_peak(_LIVES)


@pytest.mark.usefixtures("mac")
def test_where_a_mac_does_not_tell_what_is_resident_counts() -> None:
    assert (resident_bytes(_ANOTHERS), peak_bytes(_ANOTHERS)) == (_RSS_OF_ANOTHER, None)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has libproc")
def test_there_is_no_libproc_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_MACOS", True)
    monkeypatch.setattr(process, "_LINUX", False)
    assert resident(os.getpid()) > MEGA
    assert peak_bytes(os.getpid()) is None

"""The probe, in pretended trees of /proc and /sys and on this machine."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderkiln.worker.memory import pressure
from renderkiln.worker.memory.pressure import Level, Probe, Sample

MEBI = 2**20
MEMINFO = """\
MemTotal:       16777216 kB
MemFree:          409600 kB
MemAvailable:    8388608 kB
HugePages_Total:       0
SwapTotal:       4194304 kB
SwapFree:        3145728 kB
"""
TOTAL, AVAILABLE = 16384 * MEBI, 8192 * MEBI
PRESSURE = "some avg10=12.50 avg60=3.00 avg300=1.00 total=99\nfull avg10=4.25 avg60=1.00 avg300=0.10 total=44\n"
NEARER = "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.75 avg60=0.00 avg300=0.00 total=4\n"
V2 = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:8 - cgroup cgroup rw,cpu\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 master:2 - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)
NO_LIMIT = "9223372036854771712"

Tree = Mapping[str, str]


def plant(root: Path, tree: Tree) -> Path:
    for name, content in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def machine(**more: str) -> dict[str, str]:
    return {"proc/meminfo": MEMINFO, "proc/pressure/memory": PRESSURE, **more}


def v2(path: str, groups: Mapping[str, Tree], mounts: str = V2, at: str = "sys/fs/cgroup") -> dict[str, str]:
    """A machine with such groups, by their folder below the mount."""
    tree = machine() | {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": mounts}
    return tree | {f"{at}/{group}/{name}": text for group, files in groups.items() for name, text in files.items()}


def v1(path: str, groups: Mapping[str, Tree], mounts: str = V1, at: str = "sys/fs/cgroup/memory") -> dict[str, str]:
    # The other controllers have groups of the same names.
    tree = v2("", groups, mounts, at) | {f"sys/fs/cgroup/cpu{path}/cpu.shares": "1024\n"}
    return tree | {"proc/self/cgroup": f"5:cpu,cpuacct:/elsewhere\n4:memory:{path}\n1:name=systemd:/\n0::/\n"}


def limited(maximum: object, used: int, file: int = 0, high: object = "max") -> Tree:
    return {
        "memory.max": f"{maximum}\n",
        "memory.high": f"{high}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 1\nfile 77\ninactive_file {file}\nactive_file 5\nfile_mapped 9\n",
    }


def limited_v1(maximum: object, used: int, file: int = 0, hierarchical: object = NO_LIMIT) -> Tree:
    return {
        "memory.limit_in_bytes": f"{maximum}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": f"inactive_file 1\nhierarchical_memory_limit {hierarchical}\ntotal_inactive_file {file}\n",
    }


def memory(root: Path) -> tuple[int, int]:
    """Total and available, in MiB."""
    found = Probe(root).read()
    return found.total_bytes // MEBI, found.available_bytes // MEBI


def test_a_machine_without_cgroups(tmp_path: Path) -> None:
    before = time.monotonic()
    found = Probe(plant(tmp_path, machine())).read()
    assert before <= found.at <= time.monotonic()
    assert found == Sample(found.at, TOTAL, AVAILABLE, 1024 * MEBI, None, 12.5, 4.25)


def test_what_changes_is_read_anew(tmp_path: Path) -> None:
    tree = v2("/a", {"a": limited("max", 0)})
    probe = Probe(plant(tmp_path, tree))
    assert probe.read().available_bytes == AVAILABLE
    changed = {"sys/fs/cgroup/a/memory.max": str(512 * MEBI), "sys/fs/cgroup/a/memory.current": str(500 * MEBI)}
    plant(tmp_path, {**changed, "proc/pressure/memory": "some avg10=99.00 avg60=1.00 avg300=0.10 total=1\n"})
    found = probe.read()
    assert (found.total_bytes, found.available_bytes) == (512 * MEBI, 12 * MEBI)
    assert (found.stall, found.stall_full) == (99.0, None)


@pytest.mark.parametrize(
    ("path", "names"), [("v2", ("active_file", "file_mapped")), ("v1", ("total_active_file", "total_mapped_file"))]
)
def test_file_cache_in_frequent_use_is_free_unless_it_is_mapped(
    path: str, names: tuple[str, str], tmp_path: Path
) -> None:
    group = dict((limited if path == "v2" else limited_v1)(4096 * MEBI, 1024 * MEBI))
    group["memory.stat"] = f"{names[0]} {300 * MEBI}\n{names[1]} {100 * MEBI}\n"
    tree = (v2 if path == "v2" else v1)("/a", {"a": group})
    assert Probe(plant(tmp_path, tree)).read().available_bytes == (3072 + 200) * MEBI


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (limited("max", 9000 * MEBI), (16384, 8192)),
        (limited(4096 * MEBI, 1024 * MEBI), (4096, 3072)),
        (limited(4096 * MEBI, 1024 * MEBI, 1000 * MEBI), (4096, 4072)),  # file cache that is not in use is free
        (limited(4096 * MEBI, 1024 * MEBI, 2000 * MEBI), (4096, 4096)),  # never more than there is
        (limited(4096 * MEBI, 1024 * MEBI, high=2048 * MEBI), (2048, 1024)),
        (limited("max", 1024 * MEBI, high=2048 * MEBI), (2048, 1024)),
        (limited(4096 * MEBI, 1024 * MEBI, high=0), (4096, 3072)),
        (limited("max", 3000 * MEBI, high=2048 * MEBI), (2048, 0)),  # one may be above memory.high
        (limited(12000 * MEBI, 1024 * MEBI), (12000, 8192)),  # what the machine has is less
        (limited(99999 * MEBI, 99000 * MEBI), (16384, 8192)),  # a limit that is none
        (limited(0, 0), (16384, 8192)),
        (limited("-5", 0), (16384, 8192)),
        (limited("9" * 30, 0), (16384, 8192)),
        (limited("9" * 5000, 0), (16384, 8192)),  # more digits than Python reads
        (limited("nonsense\x00²", 0), (16384, 8192)),
        ({"memory.max": str(4096 * MEBI)}, (4096, 4096)),  # what is in use is not told
        ({"memory.max": str(4096 * MEBI), "memory.current": str(96 * MEBI), "memory.stat": "?"}, (4096, 4000)),
        ({"cgroup.procs": "1"}, (16384, 8192)),  # no memory controller
    ],
)
def test_version_2(tmp_path: Path, group: Tree, expected: tuple[int, int]) -> None:
    assert memory(plant(tmp_path, v2("/a", {"a": group}))) == expected


@pytest.mark.parametrize(
    ("outer", "middle", "inner", "expected"),
    [
        (("max", 0), ("max", 0), ("max", 0), (16384, 8192)),
        (("max", 0), (2048, 512), ("max", 0), (2048, 1536)),
        ((6000, 100), (2048, 512), (4096, 100), (2048, 1536)),
        ((6000, 100), (4096, 512), (2048, 100), (2048, 1948)),
        # The smallest limit says how much there is, the fullest group how much is left of it.
        ((6000, 5990), (4096, 3000), (2048, 100), (2048, 10)),
        (("max", 0), (4096, 4096), (2048, 100), (2048, 0)),
    ],
)
def test_groups_in_groups(
    tmp_path: Path, outer: tuple[object, int], middle: tuple[object, int], inner: tuple[object, int], expected: object
) -> None:
    def group(limit: object, used: int) -> Tree:
        return limited(limit * MEBI if isinstance(limit, int) else limit, used * MEBI)

    groups = {"": {}, "a": group(*outer), "a/b": group(*middle), "a/b/c": group(*inner), "a/other": limited(1, 1)}
    assert memory(plant(tmp_path, v2("/a/b/c", groups))) == expected


def test_a_container_sees_its_own_group_at_the_mount(tmp_path: Path) -> None:
    # With a cgroup namespace the path is `/`, and the mount has what the root of the machine has not: a limit.
    assert memory(plant(tmp_path, v2("/", {"": limited(1024 * MEBI, 24 * MEBI)}))) == (1024, 1000)


@pytest.mark.parametrize("path", ["/kubepods/pod1/gone", "/../../other", "/..", "/a (deleted)"])
def test_a_path_that_is_not_visible(tmp_path: Path, path: str) -> None:
    plant(tmp_path, {"sys/fs/other/memory.max": "1", "sys/fs/memory.max": "1"})
    assert memory(plant(tmp_path, v2(path, {"": limited(1024 * MEBI, 24 * MEBI)}))) == (1024, 1000)


def test_the_pressure_is_that_of_the_nearest_limit(tmp_path: Path) -> None:
    groups = {
        "a": {**limited(2048 * MEBI, 0), "memory.pressure": NEARER},
        "a/b": {**limited("max", 0), "memory.pressure": PRESSURE},
    }
    found = Probe(plant(tmp_path / "limited", v2("/a/b", groups))).read()
    assert (found.stall, found.stall_full) == (1.5, 0.75)
    # Without a limit, and where the group does not tell, it is the machine's.
    groups["a"] = {**limited("max", 0), "memory.pressure": NEARER}
    assert Probe(plant(tmp_path / "not", v2("/a/b", groups))).read().stall == 12.5
    assert Probe(plant(tmp_path / "silent", v2("/a", {"a": limited(2048 * MEBI, 0)}))).read().stall == 12.5


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        (limited_v1(NO_LIMIT, 9000 * MEBI), (16384, 8192)),
        (limited_v1(4096 * MEBI, 1024 * MEBI), (4096, 3072)),
        (limited_v1(4096 * MEBI, 1024 * MEBI, 1000 * MEBI), (4096, 4072)),
        # A limit around the container, in a group that it does not see.
        (limited_v1(NO_LIMIT, 1024 * MEBI, 0, 2048 * MEBI), (2048, 1024)),
        (limited_v1(4096 * MEBI, 1024 * MEBI, 0, "?"), (4096, 3072)),
    ],
)
def test_version_1(tmp_path: Path, group: Tree, expected: tuple[int, int]) -> None:
    assert memory(plant(tmp_path, v1("/docker/a", {"docker/a": group}))) == expected


def test_version_1_in_groups_has_no_pressure_of_its_own(tmp_path: Path) -> None:
    groups = {"": limited_v1(NO_LIMIT, 0), "a": limited_v1(1024 * MEBI, 1000 * MEBI), "a/b": limited_v1(2048 * MEBI, 0)}
    root = plant(tmp_path, v1("/a/b", groups))
    assert memory(root) == (1024, 24)
    assert Probe(root).read().stall == 12.5


CONTAINER = "35 31 0:32 /docker/a /sys/fs/cgroup/memory ro,relatime master:9 - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/docker/a", (1024, 1000)),
        ("/docker/a/inside", (512, 412)),
        ("/docker/ab", (1024, 1000)),  # not visible, and no child of it either
        ("/", (1024, 1000)),
    ],
)
def test_a_mount_of_a_part(tmp_path: Path, path: str, expected: tuple[int, int]) -> None:
    groups = {
        "": limited_v1(1024 * MEBI, 24 * MEBI),
        "inside": limited_v1(512 * MEBI, 100 * MEBI),
        "b": limited_v1(MEBI, MEBI),
    }
    assert memory(plant(tmp_path, v1(path, groups, CONTAINER))) == expected


def test_a_mount_anywhere(tmp_path: Path) -> None:
    mounts = (
        "garbage\n\n1 2 3 - cgroup2\n90 1 0:9 /not/ours /elsewhere rw - cgroup2 none rw\n"
        "91 1 0:9 / /my\\040groups rw - cgroup2 none rw\n"
    )
    tree = v2("/a", {"a": limited(1024 * MEBI, 24 * MEBI)}, mounts, "my groups")
    assert memory(plant(tmp_path, tree)) == (1024, 1000)


@pytest.mark.parametrize("point", ["/sys\\000", "/" + "long" * 99, "/proc/self/cgroup"])
def test_a_mount_that_is_no_folder(tmp_path: Path, point: str) -> None:
    assert memory(plant(tmp_path, v2("/a", {}, f"31 23 0:28 / {point} rw - cgroup2 cgroup2 rw\n"))) == (16384, 8192)


@pytest.mark.parametrize("missing", ["meminfo", "pressure/memory", "self/cgroup", "self/mountinfo"])
def test_a_file_is_missing(tmp_path: Path, missing: str) -> None:
    root = plant(tmp_path, v2("/", {"": limited(1024 * MEBI, 24 * MEBI)}))
    (root / "proc" / missing).unlink()
    found = Probe(root).read()
    expected = (16384, 8192) if missing == "self/mountinfo" else (1024, 1000)
    assert (found.total_bytes // MEBI, found.available_bytes // MEBI) == expected
    assert found.stall == (None if missing == "pressure/memory" else 12.5)
    assert found.swap_used_bytes == (0 if missing == "meminfo" else 1024 * MEBI)


def test_more_available_than_there_is(tmp_path: Path) -> None:
    plant(tmp_path, machine() | {"proc/meminfo": "MemTotal: 1048576 kB\nMemAvailable: 2097152 kB\n"})
    assert memory(tmp_path) == (1024, 1024)


def test_folders_in_place_of_files(tmp_path: Path) -> None:
    for name in ("proc/meminfo", "proc/pressure/memory", "proc/self/cgroup", "sys/fs/cgroup/memory.max"):
        (tmp_path / name).mkdir(parents=True)
    found = Probe(plant(tmp_path, {"proc/self/mountinfo": V2})).read()
    assert found.available_bytes == found.total_bytes > 0
    assert (found.swap_used_bytes, found.stall) == (0, None)


@pytest.mark.parametrize(
    "text", ["", "some", "some avg10=", "some avg10=nan", "some avg10=inf", "some avg10=-1", "some avg10=101", "\x00²"]
)
def test_pressure_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    found = Probe(plant(tmp_path, machine() | {"proc/pressure/memory": text})).read()
    assert (found.stall, found.stall_full) == (None, None)


@pytest.mark.parametrize("line", ["MemAvailable: -5 kB", "MemAvailable: 5 MB", "MemAvailable:", "MemAvailable: ² kB"])
def test_memory_that_is_not_told_is_not_short(tmp_path: Path, line: str) -> None:
    plant(tmp_path, machine() | {"proc/meminfo": f"MemTotal: 16777216 kB\n{line}\nSwapTotal: 4096 kB\n"})
    found = Probe(tmp_path).read()
    assert (found.total_bytes, found.available_bytes, found.swap_used_bytes) == (TOTAL, TOTAL, 0)


WORDS = (
    "MemTotal: MemAvailable: SwapTotal: kB 5 -1 max some full avg10= avg10=7 inactive_file 0::/ /.. 4:memory:/ -"
    " cgroup2 cgroup rw,memory / \\0400 \\400 \x00"
)
PIECES = st.sampled_from([*WORDS.split(" "), "9" * 25, "\n"]) | st.text(max_size=5)
GARBAGE = st.lists(PIECES, max_size=25).map(lambda pieces: " ".join(pieces).encode("utf-8", "ignore"))
NAMES = [
    "proc/meminfo",
    "proc/pressure/memory",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    *(f"sys/fs/cgroup/{name}" for name in ("memory.max", "memory.current", "memory.stat", "memory.pressure")),
]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), GARBAGE | st.binary(max_size=50)))
def test_no_garbage_is_an_error(garbage: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = plant(Path(folder), v2("/", {"": limited(1024 * MEBI, 24 * MEBI)}))
        for name, content in garbage.items():
            (root / name).write_bytes(content)
        found = Probe(root).read()
    assert 0 <= found.available_bytes <= found.total_bytes
    assert found.total_bytes > 0
    assert found.swap_used_bytes >= 0
    assert all(value is None or 0 <= value <= 100 for value in (found.stall, found.stall_full))


def test_this_machine() -> None:
    probe = Probe()
    first, second = probe.read(), probe.read()
    assert first.at < second.at <= time.monotonic()
    assert 500 * MEBI < second.total_bytes <= psutil.virtual_memory().total
    assert 0 < second.available_bytes <= second.total_bytes
    assert 0 <= second.swap_used_bytes <= psutil.swap_memory().total
    assert (second.system is None) == (sys.platform != "darwin")
    if sys.platform == "linux" and os.access("/proc/pressure/memory", os.R_OK):
        assert second.stall is not None
        assert 0 <= (second.stall_full or 0.0) <= second.stall + 0.01


@pytest.mark.parametrize(
    ("told", "level"), [(1, Level.CALM), (2, Level.WARN), (4, Level.CRITICAL), (0, None), (3, None), (None, None)]
)
def test_a_mac(monkeypatch: pytest.MonkeyPatch, told: int | None, level: Level | None) -> None:
    """Where this is no Mac: its way through the module, with made-up answers in C's calling convention."""

    def answer(name: bytes, value: int, size: int, new: int | None, new_size: int) -> int:
        assert (name, new, new_size) == (b"kern.memorystatus_vm_pressure_level", None, 0)
        assert ctypes.c_size_t.from_address(size).value == 4
        if told is None:
            return -1
        ctypes.c_uint32.from_address(value).value = told
        return 0

    pointer = ctypes.c_void_p
    convention = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, pointer, pointer, pointer, ctypes.c_size_t)
    function = convention(answer)
    monkeypatch.setattr(pressure, "_MACOS", True)
    monkeypatch.setattr(pressure, "_sysctlbyname", lambda: function)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=16 * MEBI, available=4 * MEBI))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(used=3 * MEBI))
    found = Probe().read()
    assert found == Sample(found.at, 16 * MEBI, 4 * MEBI, 3 * MEBI, level, None, None)

"""What the doctor makes of facts: made-up machines, disks, folders, servers, libraries and settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import redis
from redis.exceptions import NoPermissionError

from renderkiln.home.checkup import size
from renderkiln.home.connect import complaint_about_url
from renderkiln.home.machine import read_machine
from renderkiln.home.models import InstalledModel
from renderkiln.producer.doctor.disks import judge_disk
from renderkiln.producer.doctor.folder import Place, judge_folder, judge_socket
from renderkiln.producer.doctor.libraries import Requirement, fits, judge_libraries, parse_requirements
from renderkiln.producer.doctor.machine import judge_chip, judge_memory, judge_system
from renderkiln.producer.doctor.models import judge_models
from renderkiln.producer.doctor.server import Answer, judge_answer, judge_failure
from renderkiln.producer.doctor.settings import judge_hidden, judge_settings
from renderkiln.producer.doctor.store import judge_missing

from .conftest import GIGA, mac, states


@pytest.mark.parametrize(
    ("macos", "state", "said"),
    [((15, 6), "ok", "macOS 15.6"), ((13, 6), "warning", "14 keeps them small"), ((12, 7), "problem", "need 13.1")],
)
def test_a_system(macos: tuple[int, ...], state: str, said: str) -> None:
    finding = judge_system(mac(macos=macos))
    assert (finding.state, said in finding.says) == (state, True)
    assert (finding.do is None) == (state == "ok")


def test_a_system_that_is_no_mac_is_no_problem() -> None:
    finding = judge_system(mac(system="Linux", macos=(), release="6.1"))
    assert finding.state == "ok"
    assert "no Core ML" in finding.says


def test_chips() -> None:
    good, virtual = judge_chip(mac()), judge_chip(mac(is_virtual=True, has_neural_engine=False))
    translated = judge_chip(mac(is_translated=True, architecture="x86_64"))
    assert good.says == "Apple M2, 8 cores, 4 of them fast, with a Neural Engine"
    assert states([good, virtual, translated]) == ["ok", "warning", "problem"]
    assert "no Neural Engine" in virtual.says
    assert "brew install" in (translated.do or "")
    assert judge_chip(mac(system="Linux", chip=None, performance_cores=None)).says == "arm64, 8 cores"


def test_memory() -> None:
    plenty, some = judge_memory(mac(memory=64 * GIGA)), judge_memory(mac(memory=8 * GIGA, available=4 * GIGA))
    little, full = judge_memory(mac(memory=4 * GIGA)), judge_memory(mac(available=GIGA))
    assert states([plenty, some, little, full]) == ["ok", "ok", "warning", "warning"]
    assert "SDXL" not in plenty.says
    assert "SDXL" in some.says
    assert "--nbits 6" in (little.do or "")
    assert full.facts == {"total_bytes": 16 * GIGA, "available_bytes": GIGA}


def test_this_machine_says_what_it_is() -> None:
    machine = read_machine()
    assert machine.system in ("Darwin", "Linux")
    assert machine.memory > machine.available > 0
    assert machine.cores > 0
    assert bool(machine.macos) == (machine.system == "Darwin")


def test_disks() -> None:
    found = [judge_disk("disk", Path("/d"), free, 500 * GIGA) for free in (100 * GIGA, 3 * GIGA, GIGA // 5)]
    assert states(found) == ["ok", "warning", "problem"]
    assert found[1].says == "3.0 GB of 500.0 GB free at /d: a model takes 2 to 10 GB"
    assert found[2].facts["free_bytes"] == GIGA // 5
    assert "models cache clean" in (found[2].do or "")
    assert judge_disk("disk", Path("/proc"), 0, 0).state == "ok"


GOOD = Place(Path("/d"), Path("/d"), is_folder=True, is_writable=True, is_ours=True, mode=0o700, kind="apfs")


@pytest.mark.parametrize(
    ("changes", "state", "said"),
    [
        ({}, "ok", "for its owner alone"),
        ({"mode": 0o755}, "warning", "open to other users of this machine (mode 755)"),
        ({"is_ours": False}, "warning", "another user"),
        ({"kind": "smbfs"}, "warning", "network share (smbfs)"),
        ({"is_writable": False}, "problem", "cannot be written"),
        ({"is_folder": False}, "problem", "is a file"),
        ({"there": Path("/")}, "ok", "is made when it is needed"),
        ({"there": Path("/"), "is_writable": False}, "problem", "/d cannot be made: / cannot be written"),
    ],
)
def test_data_folders(changes: dict[str, object], state: str, said: str) -> None:
    finding = judge_folder(dataclasses.replace(GOOD, **changes))  # type: ignore[arg-type]
    assert (finding.state, said in finding.says) == (state, True)
    assert (finding.do is None) == (state == "ok")


def test_sockets() -> None:
    socket = Path("/d/server/valkey.sock")
    good, moved = judge_socket(socket, True, False), judge_socket(socket, False, False)
    long, others = judge_socket(Path("/" + "d" * 110), False, False), judge_socket(socket, True, True)
    assert states([good, moved, long, others]) == ["ok", "ok", "problem", "problem"]
    assert good.says == "/d/server/valkey.sock: 22 bytes of 104"
    assert "too long" in moved.says
    assert "TMPDIR" in (long.do or "")


def test_a_store_that_is_not_there_yet() -> None:
    place = dataclasses.replace(GOOD, wanted=Path("/d/out"))
    found = [judge_missing(dataclasses.replace(place, **each)) for each in ({}, {"is_writable": False})]
    assert states(found) == ["ok", "problem"]
    assert found[1].says == "/d/out cannot be made: /d cannot be written"


ANSWER = Answer("7.2.4", is_kept=True, eviction="noeviction", memory=1000, workers=2)


@pytest.mark.parametrize(
    ("url", "changes", "state", "said"),
    [
        ("redis://:secret@mini", {}, "ok", "answers, version 7.2.4; 2 workers up"),
        ("redis://localhost", {"workers": 1}, "ok", "1 worker up"),
        ("redis://localhost", {"version": None, "is_kept": None, "eviction": None}, "ok", "answers; 2 workers"),
        ("redis://localhost", {"version": "6.0.16"}, "problem", "needs 6.2"),
        ("redis://localhost", {"version": "6.2.0"}, "ok", "version 6.2.0"),
        ("redis://localhost", {"eviction": "allkeys-lru"}, "warning", "jobs would be lost"),
        ("redis://localhost", {"is_kept": False}, "warning", "no append-only file"),
        ("redis://mini", {}, "warning", "no password"),
        ("redis://mini?password=secret", {}, "ok", "answers"),
    ],
)
def test_what_a_redis_says_of_itself(url: str, changes: dict[str, object], state: str, said: str) -> None:
    finding = judge_answer("redis", url, dataclasses.replace(ANSWER, **changes))  # type: ignore[arg-type]
    assert (finding.state, said in finding.says) == (state, True)
    assert "secret" not in str(finding)


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (redis.AuthenticationError("invalid username-password pair"), "problem", "refuses us"),
        (NoPermissionError("no permissions to run 'ping'"), "problem", "forbids what we need"),
        (redis.exceptions.BusyLoadingError("loading"), "warning", "is reading its data"),
        (redis.TimeoutError("Timeout reading from socket"), "problem", "does not answer within 3 s"),
        (redis.ConnectionError("Connection refused"), "problem", "cannot be reached: Connection refused"),
    ],
)
def test_what_a_redis_fails_with(error: Exception, state: str, said: str) -> None:
    finding = judge_failure("redis://mini", error)
    assert (finding.state, said in finding.says) == (state, True)
    assert finding.do


@pytest.mark.parametrize(
    "url", ["redis://:sec/ret@mini", "redis://:sec#ret@mini:6379", "redis://us:12/3@mini", "mini:6379", "http://mini"]
)
def test_a_url_that_is_none_is_said_without_a_word_of_it(url: str) -> None:
    complaint = complaint_about_url(url)
    assert complaint
    assert not any(word in complaint for word in ("sec", "ret", "12", "mini"))


@pytest.mark.parametrize(
    "url", ["redis://:s%2Fx@mini:6379/0", "rediss://mini", "unix:///d/valkey.sock", "redis://[::1]"]
)
def test_a_url_that_is_one(url: str) -> None:
    assert complaint_about_url(url) is None


METADATA = ["numpy<2.4,>=1.26; extra == 'worker'", 'torch>=2.6; extra == "worker"', "redis>=5.1", "rich"]


def test_requirements_are_read_as_metadata_writes_them() -> None:
    assert parse_requirements([*METADATA, "tomli>=2.0; python_version < '3.11'", "pydantic-settings[toml]>=2.6"]) == [
        Requirement("numpy", "<2.4,>=1.26", "worker"),
        Requirement("torch", ">=2.6", "worker"),
        Requirement("redis", ">=5.1", None),
        Requirement("rich", "", None),
        Requirement("pydantic-settings", ">=2.6", None),
    ]


@pytest.mark.parametrize(("system", "found"), [("darwin", ["pyobjc"]), ("linux", [])])
def test_what_another_system_needs_is_not_missed(system: str, found: list[str]) -> None:
    line = "pyobjc>=10.0; sys_platform == 'darwin' and extra == 'coreml'"
    assert [each.name for each in parse_requirements([line], system)] == found


@pytest.mark.parametrize(
    ("number", "versions", "does"),
    [
        ("2.3.5", "<2.4,>=1.26", True),
        ("2.4.0", "<2.4,>=1.26", False),
        ("2.13.0+cu128", ">=2.6", True),
        ("9.0", ">=9.0,<10", True),
        ("10", "<10", False),
        ("3.0", "==3", True),
        ("1.0rc1", "!=1.1", True),
        ("5", "", True),
    ],
)
def test_versions_and_their_ranges(number: str, versions: str, does: bool) -> None:
    assert fits(number, versions) is does


def test_libraries() -> None:
    wanted = parse_requirements(METADATA)
    here = {"numpy": "2.3.5", "torch": "2.13.0", "redis": "8.1", "rich": "13.9"}
    base, extra = judge_libraries(wanted, here)
    assert (base.about, base.says, extra.about) == ("libraries", "redis 8.1, rich 13.9", "extra worker")
    assert states([base, extra]) == ["ok", "ok"]
    base, extra = judge_libraries(wanted, here | {"numpy": "2.4.0"})
    assert (extra.state, extra.says) == ("warning", "numpy is 2.4.0, not <2.4,>=1.26")
    base, extra = judge_libraries(wanted, here | {"torch": None, "rich": None})
    assert [(each.state, each.says, each.do) for each in (base, extra)] == [
        ("problem", "missing: rich", "pip install 'renderkiln'"),
        ("warning", "missing: torch", "pip install 'renderkiln[worker]'"),
    ]
    base, extra = judge_libraries(wanted, here | {"torch": None, "numpy": None})
    assert (extra.state, extra.facts["missing"]) == ("ok", ["numpy", "torch"])
    assert "pip install 'renderkiln[worker]'" in extra.says


def test_models() -> None:
    model = InstalledModel("sd15", Path("/m/sd15"), "StableDiffusionPipeline", 4 * GIGA, packaged=False)
    assert judge_models([model], "sd15", "/m").says == "sd15: 4.0 GB, below /m"
    other = judge_models([model], "sd51", "/m")
    assert other.state == "warning"
    assert "Did you mean 'sd15'" in other.says
    assert "none yet" in (judge_models([], "sd15", "/m").do or "")


DEFAULTS = dict.fromkeys(("engine", "device", "dtype", "compute_unit", "variant"), "auto")


@pytest.mark.parametrize(
    ("changes", "is_mac", "state", "said"),
    [
        ({"device": "mps"}, False, "problem", "no Mac"),
        ({"device": "cuda"}, True, "problem", "no Mac has"),
        ({"compute_unit": "all"}, False, "problem", "a Mac's"),
        ({"compute_unit": "reference"}, True, "warning", "slower"),
        ({"compute_unit": "cpu_and_ne", "variant": "original"}, True, "warning", "for ever"),
        ({"compute_unit": "cpu_and_gpu", "variant": "split-einsum-v2"}, True, "warning", "made for the Neural Engine"),
        ({"engine": "torch", "variant": "original"}, True, "warning", "variant has no effect with the engine torch"),
        ({"engine": "coreml", "device": "cpu", "dtype": "float32"}, True, "warning", "device and dtype have no effect"),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, str], is_mac: bool, state: str, said: str) -> None:
    (finding,) = judge_settings(DEFAULTS | changes, is_mac=is_mac)
    assert (finding.state, said in finding.says) == (state, True)
    assert "RENDERKILN_" in (finding.do or "")


@pytest.mark.parametrize("is_mac", [True, False])
def test_settings_that_do_not(is_mac: bool) -> None:
    assert judge_settings(DEFAULTS, is_mac=is_mac) == []
    assert judge_settings(DEFAULTS | {"engine": "torch", "device": "cpu"}, is_mac=is_mac) == []
    assert judge_settings(DEFAULTS | {"engine": "coreml", "variant": "original"}, is_mac=is_mac) == []


def test_hidden_settings_are_named_and_their_values_are_not() -> None:
    (finding,) = judge_hidden(["redis_url"])
    assert finding.says == "RENDERKILN_REDIS_URL hides the redis_url of renderkiln.toml, which is another"


def test_sizes_in_words() -> None:
    assert [size(each) for each in (0, 1_600_000, 12_340_000_000)] == ["0 MB", "2 MB", "12.3 GB"]

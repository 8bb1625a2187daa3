"""`renderkiln doctor` as a person runs it: on a healthy machine, on broken ones, and in a base install."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.doctor.conftest import unwritable  # noqa: F401  # a fixture

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings

from .conftest import Run, Said
from .test_base_install import HIDING

#: As HIDING hides modules: the metadata of all that the extras bring.
HIDING_METADATA = """
import importlib.metadata
from importlib.metadata import PackageNotFoundError, requires, version
EXTRAS = {line.split(">")[0].split("<")[0].split(";")[0] for line in requires("renderkiln") if "extra ==" in line}
def visible(name):
    if name in EXTRAS:
        raise PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = visible
"""


def finding(said: Said, about: str) -> Any:
    return next(each for each in said.json["findings"] if each["about"] == about)


def problems(said: Said) -> list[str]:
    return [each["about"] for each in said.json["findings"] if each["state"] == "problem"]


def test_a_healthy_machine_without_a_redis_gets_no_problem_and_no_server(run: Run, alone: EmbeddedServer) -> None:
    began = time.monotonic()
    said = run("doctor")
    assert (said.code, said.err) == (0, "")
    assert time.monotonic() - began < 5  # about a quarter of a second; machines that run tests are busy
    assert said.out.splitlines()[-1].startswith("0 problems, ")
    for about in ("renderkiln", "system", "chip", "memory", "libraries", "disk", "store", "queue", "model shapes"):
        assert f"  {about}  " in said.out
    assert not alone.status().running
    assert not (Path(os.environ["RENDERKILN_DATA_DIR"])).exists()
    assert not Path("out").exists()


def test_a_fleet_is_asked_and_the_embedded_server_is_reported(run: Run, fleet: Settings, alone: EmbeddedServer) -> None:
    said = run("doctor", "--json")
    assert (said.code, said.json["ok"]) == (0, True)
    assert finding(said, "queue")["state"] == "ok"
    assert finding(said, "queue")["facts"]["workers"] == 0
    alone.ensure_running()
    alone.client().set("a", "job")
    assert finding(run("doctor", "--json"), "embedded server")["facts"] == {"keys": 1}


def test_a_running_embedded_server_is_looked_at(run: Run, alone: EmbeddedServer) -> None:
    alone.ensure_running()
    said = run("doctor", "--json")
    assert finding(said, "queue")["says"].startswith("the embedded server answers: 0 keys")
    assert finding(said, "data folder")["facts"]["mode"] == "700"


def test_a_server_that_hangs_is_not_taken_for_none(run: Run, alone: EmbeddedServer) -> None:
    alone.ensure_running()
    (alone.status().socket).unlink()
    queue = finding(run("doctor", "--json"), "queue")
    assert (queue["state"], "does not answer" in queue["says"]) == ("warning", True)
    pid = (Path(os.environ["RENDERKILN_DATA_DIR"]) / "server" / "server.pid").read_text()
    os.kill(int(pid), 15)


def test_a_redis_that_is_not_there_is_a_problem(
    run: Run, alone: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listened on: nobody else gets it, and nobody answers
        monkeypatch.setenv("RENDERKILN_REDIS_URL", f"redis://:secret@127.0.0.1:{taken.getsockname()[1]}")
        said = run("doctor", "--json")
    assert (said.code, problems(said)) == (1, ["queue"])
    assert "cannot be reached" in finding(said, "queue")["says"]
    assert "secret" not in said.out


def test_a_wrong_password_is_told_and_not_shown(
    run: Run, no_settings: Path, monkeypatch: pytest.MonkeyPatch, own_server: Callable[[Path], EmbeddedServer]
) -> None:
    folder = no_settings / "fleet"
    server = own_server(folder)
    server.ensure_running()
    path = server.status().socket
    server.client().config_set("requirepass", "right-secret")
    try:
        monkeypatch.setenv("RENDERKILN_REDIS_URL", f"unix://:wrong-secret@{path}")
        said, plain = run("doctor", "--json"), run("doctor")
        monkeypatch.setenv("RENDERKILN_REDIS_URL", f"unix://:right-secret@{path}")
        good = run("doctor", "--json")
    finally:
        redis.Redis(unix_socket_path=str(path), password="right-secret").config_set("requirepass", "")
    assert (said.code, problems(said), plain.code) == (1, ["queue"], 1)
    assert "refuses us" in finding(said, "queue")["says"]
    assert "→ export RENDERKILN_REDIS_URL=redis://:PASSWORD@HOST:6379" in plain.out
    assert good.code == 0
    assert "secret" not in said.out + plain.out + good.out


def test_places_that_cannot_be_written_are_problems(run: Run, no_settings: Path, unwritable: Path) -> None:  # noqa: F811
    said = run("doctor", "--json", "--data-dir", unwritable / "data", "--out", unwritable)
    assert said.code == 1
    assert "store" in problems(said)
    (no_settings / "file").write_text("")
    said = run("doctor", "--json", "--data-dir", no_settings / "file", "--out", no_settings / "file" / "out")
    assert (said.code, problems(said)) == (1, ["data folder", "store"])
    assert finding(said, "data folder")["do"] == "give another folder with --data-dir"
    assert "is a file" in finding(said, "store")["says"]


def test_a_broken_model_and_a_broken_ledger_are_problems(run: Run, no_settings: Path) -> None:
    data = DataFolder(no_settings / "data").ensure()
    shutil.copytree(find_model(data, "shapes"), data.models / "mine")
    (data.models / "mine" / "scheduler" / "scheduler_config.json").unlink()
    data.ledger.write_bytes(b"no database" * 1000)
    said = run("doctor", "--json", "--data-dir", data.root)
    assert (said.code, problems(said)) == (1, ["ledger", "model mine"])
    assert finding(said, "model mine")["do"].startswith("renderkiln models verify mine")
    assert finding(said, "model shapes")["state"] == "ok"
    assert "→ renderkiln models verify mine" in run("doctor", "--data-dir", data.root).out


def test_settings_that_are_wrong_are_a_problem_and_do_not_end_it(
    run: Run, no_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RENDERKILN_REDIS_ULR", "redis://:secret@mini")
    said = run("doctor", "--json")
    assert (said.code, problems(said)) == (1, ["settings"])
    assert "RENDERKILN_REDIS_ULR" in finding(said, "settings")["says"]
    assert finding(said, "libraries")["state"] == "ok"
    assert "secret" not in said.out


def test_a_setting_that_hides_another_is_named(
    run: Run, alone: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("renderkiln.toml").write_text('device = "cpu"\nengine = "torch"\nvariant = "original"\n')
    monkeypatch.setenv("RENDERKILN_DEVICE", "auto")
    said = run("doctor", "--json")
    found = [each["says"] for each in said.json["findings"] if each["about"] == "settings"]
    assert said.code == 0
    assert found == [
        "variant has no effect with the engine torch",
        "RENDERKILN_DEVICE hides the device of renderkiln.toml, which is another",
    ]


def test_a_base_install_is_well_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    hidden = HIDING.replace("HIDDEN = {", 'HIDDEN = {"safetensors", ')
    said = subprocess.run(
        [sys.executable, "-c", HIDING_METADATA + hidden, "doctor", "--json"],
        cwd=tmp_path,
        env=os.environ | {"RENDERKILN_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (said.returncode, said.stderr) == (0, "")
    findings = {each["about"]: each for each in json.loads(said.stdout)["findings"]}
    assert findings["rendering"]["says"].startswith("nothing is rendered on this machine: torch")
    assert "pip install 'renderkiln[worker]'" in findings["extra worker"]["says"]
    assert "torch" in findings["extra worker"]["facts"]["missing"]
    assert findings["models"]["facts"]["models"] == ["shapes"]

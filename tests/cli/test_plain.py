"""Names and messages that others wrote do nothing to a terminal, and nothing to a log."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from tests.fakes import FakeWorker, announce_worker

from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.home.showing import plain, plain_json
from renderkiln.schema.workers import Refused
from renderkiln.worker.cli import _Lines

from .conftest import Run

EVIL = "cat\x1b]0;x\x07\x1b[2J\x9b31m\u202eegnahc\u2066\r\nok: all done"
CONTROLS = ("\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\r")


def is_plain(text: str) -> bool:
    return not any(char in text for char in CONTROLS)


@pytest.fixture
def worker(fleet: Settings, server: EmbeddedServer) -> FakeWorker:
    return FakeWorker(server.client())


def test_what_is_plain_stays_as_it_is() -> None:
    text = "é 猫 \U0001f468\u200d\U0001f469 — «a»"
    assert plain(text) == plain_json(text) == text
    assert plain("a\nb\x1b", lines=True) == "a\nb\\x1b"
    assert plain("a\nb") == "a\\nb"
    said = json.dumps({"a": EVIL}, ensure_ascii=False)
    assert is_plain(plain_json(said))
    assert json.loads(plain_json(said)) == {"a": EVIL}


def test_status_results_and_watch_show_no_controls(run: Run, worker: FakeWorker) -> None:
    announce_worker(worker.connection, "shapes", name=EVIL, refused=Refused(jobs=3, keys=1))
    batch = run("submit", "a cat", "--json").json["batch"]
    job = worker.take()
    assert job is not None
    worker.fail(job, kind=EVIL, message=EVIL)
    status, watch, results = run("status"), run("watch"), run("results", batch)
    for said in (status, watch, results):
        assert is_plain(said.out + said.err)
        assert "ok: all done" not in (said.out + said.err).splitlines()
    assert "refused 3 jobs" in status.out
    assert "cat\\x1b]0;x" in status.out
    assert "cat\\x1b]0;x" in results.err
    as_json = run("results", batch, "--json")
    assert is_plain(as_json.out)
    assert as_json.json["failure"]["message"] == EVIL
    (told,) = run("status", "--json").json["workers"]
    assert (told["name"], told["refused"]) == (EVIL, {"jobs": 3, "keys": 1, "messages": 0})


def test_show_and_errors_show_no_controls(run: Run, fleet: Settings, tmp_path: Path) -> None:
    meta = PngImagePlugin.PngInfo()
    meta.add_text("parameters", f"{EVIL}\nSteps: 20, Sampler: Euler a, Seed: 1")
    path = tmp_path / "evil.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=meta)
    for said in (
        run("show", path),
        run("show", path, "--json"),
        run("results", EVIL),
        run("submit", tmp_path / f"{EVIL}.txt"),
    ):
        assert is_plain(said.out + said.err)
    assert is_plain(run("submit", "a cat\x1b[2J", "--dry-run").out)


def test_a_record_of_a_workers_log_is_one_plain_line() -> None:
    record = logging.LogRecord("renderkiln", logging.WARNING, "", 1, "job %s is refused", (EVIL,), None)
    line = _Lines("%(message)s").format(record)
    assert is_plain(line)
    assert "\n" not in line

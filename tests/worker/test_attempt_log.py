"""What is kept of what was logged during an attempt; and a `render` whose model fails job after job."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys

import pytest

from renderkiln.producer.failures import failed_jobs, story
from renderkiln.producer.queue import BatchStatus
from renderkiln.schema import names
from renderkiln.schema.jobs import JobStatus
from renderkiln.worker.supervisor.attempt_log import KEPT, AttemptLog, Echo, details
from renderkiln.worker.supervisor.health import MOST_FAILED

from .conftest import House


@pytest.fixture
def kept() -> AttemptLog:
    return AttemptLog()


def test_the_end_of_what_was_logged_is_kept(kept: AttemptLog, capsys: pytest.CaptureFixture[str]) -> None:
    kept.open()
    try:
        logger = logging.getLogger("renderkiln.supervisor")
        logger.warning("before")
        kept.begin()
        logger.warning("job %s", 7)
        details.debug("Traceback of the renderer")
        try:
            raise ValueError("ours")
        except ValueError:
            logger.exception("it failed")
        assert [line.split()[1] for line in kept.text.splitlines()[:2]] == ["WARNING", "DEBUG"]
        assert "before" not in kept.text
        assert kept.text.endswith("ValueError: ours\n")
        kept.add("x" * (2 * KEPT))
        kept.add("the end")
        assert (len(kept.text), kept.text[-8:]) == (KEPT, "xthe end")
    finally:
        kept.close()
    logging.getLogger("renderkiln.supervisor").warning("after")
    assert "after" not in kept.text
    assert "Traceback of the renderer" not in capsys.readouterr().err


def test_what_a_process_says_is_passed_on_and_kept(kept: AttemptLog, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = io.StringIO()
    monkeypatch.setattr(sys, "stderr", ours)
    said = "é" * 5000 + "\nwithout an end of line"
    code = f"import os; os.write(2, b'\\xff' + {said.encode()!r}); os.abort()"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, bufsize=0)
    assert process.stderr is not None
    echo = Echo(process.stderr, kept.add)
    assert process.wait() == -6
    echo.finish(timeout=10.0)
    assert ours.getvalue() == kept.text == "\ufffd" + said


def test_a_render_whose_model_fails_every_job_ends_and_says_so(house: House) -> None:
    broken = house.folder.models / "broken"
    shutil.copytree(house.folder.models / "tiny", broken)
    (weights,) = list((broken / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    prompts = house.settings.data_dir / "prompts.txt"
    prompts.write_text("".join(f"prompt {number}\n" for number in range(MOST_FAILED + 3)))
    command = [sys.executable, "-m", "renderkiln.producer", "render", str(prompts), "--model", "broken"]
    done = subprocess.run(
        [*command, "--out", str(house.pictures), "--data-dir", str(house.settings.data_dir)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "RENDERKILN_DEVICE": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert (
        "this worker takes no more jobs: 5 different jobs in a row failed here, the last with model_load" in done.stderr
    )
    failed = failed_jobs(house.queue.connection)
    assert len(failed) == MOST_FAILED
    waiting = house.queue.status(failed[0].batch)
    assert isinstance(waiting, BatchStatus)
    assert waiting.queued == 3
    told = story(house.queue.connection, house.folder, failed[0].id)
    (attempt,) = told.attempts
    assert (told.status, attempt.failure) == (JobStatus.FAILED, failed[0].failure)
    assert "the renderer's account of the failure" in attempt.log
    assert "ModelLoadError" in attempt.log
    log = house.queue.connection.hget(f"rq:job:{failed[0].id}", names.LOG_FIELD)
    assert attempt.log.encode()[-2000:] == log[-2000:]
    log_file = house.folder.logs / "worker.log"
    assert log_file.read_text().count("taking no jobs for 300 s, then one") == 1

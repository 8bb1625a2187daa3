"""A running worker renders in the form that was found to be best, from its next job on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.coreml.conftest import Library

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.settings import Settings
from renderkiln.producer import RenderQueue
from renderkiln.schema.jobs import JobStatus

from .conftest import install_both

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def worker(settings: Settings, library: Library) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of a machine with the model `both`."""
    assert settings.redis_url is not None
    install_both(library, DataFolder(settings.data_dir).ensure())
    command = [sys.executable, "-m", "renderkiln.producer", "worker", "--model", "both", "--warm", "both"]
    command += ["--data-dir", str(settings.data_dir), "--out", str(settings.data_dir / "out"), "--engine", "coreml"]
    environment = os.environ | {"RENDERKILN_REDIS_URL": settings.redis_url.get_secret_value()}
    with (settings.data_dir / "worker.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield process
    process.terminate()
    process.wait(60)


def test_it_takes_the_new_form(settings: Settings, queue: RenderQueue, worker: subprocess.Popen[bytes]) -> None:
    def renderers() -> list[int]:
        return [child.pid for child in psutil.Process(worker.pid).children()]

    def render(seed: int) -> int:
        job = queue.submit(prompt="a hat", model="both", num_inference_steps=2, seed=seed)
        assert queue.wait(job, timeout=120).status is JobStatus.FINISHED
        [pid] = renderers()
        return pid

    def tell(change: Callable[[Ledger], object]) -> None:
        ledger = Ledger(DataFolder(settings.data_dir).ledger)
        change(ledger)
        ledger.close()

    first = render(1)
    assert render(2) == first
    tell(lambda ledger: ledger.tuned("both", "split-einsum", "reference", {}))
    tuned = render(3)
    assert tuned != first
    assert render(4) == tuned
    tell(lambda ledger: ledger.forget_tuning("both"))
    assert render(5) not in (first, tuned)
    log = Path(settings.data_dir / "worker.log").read_text()
    said = [line.partition("both is to be rendered as ")[2] for line in log.splitlines() if "to be rendered as" in line]
    assert said == [
        "split-einsum on reference: starting a new renderer",
        "original on reference: starting a new renderer",
    ]

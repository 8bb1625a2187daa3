"""One form measured in a real process, and what becomes of a process that does not end well."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.coreml.conftest import Library, coreml_engine

from renderkiln.home.folder import DataFolder
from renderkiln.worker.demo import shapes_path
from renderkiln.worker.engine import self_test
from renderkiln.worker.measuring.process import measure
from renderkiln.worker.measuring.records import Candidate, Failure, Order, Progress

from .conftest import Fault

# Conversions, or waiting for another process's.
pytestmark = pytest.mark.timeout(600)
ORIGINAL = Candidate("coreml", "original", "reference")


def order(data: DataFolder, candidate: Candidate = ORIGINAL, model: str = "both", runs: int = 2) -> Order:
    return Order(model, data.root, candidate, steps=4, runs=runs, device="cpu")


def test_a_form_is_measured(both: Path, data: DataFolder) -> None:
    said: list[Progress] = []
    found = measure(order(data), said.append)
    numbers = found.numbers
    assert numbers is not None, found.failure
    # The model's own scheduler, PNDM, adds a step to those asked for.
    assert (numbers.width, numbers.height, numbers.steps) == (32, 32, 5)
    assert (numbers.device, len(numbers.latencies)) == ("reference", 2)
    assert numbers.latency_seconds == statistics.median(numbers.latencies)
    # Four of the five steps, without text encoder and decoder, fit into a picture's time.
    assert 4 / max(numbers.latencies) < numbers.iterations_per_second < 10_000
    assert 0 < numbers.load_seconds < 60
    assert numbers.peak_bytes > 100_000_000  # torch alone takes that much
    assert numbers.likeness is None
    assert (numbers.shares, numbers.no_shares, found.cold_load_seconds, found.refused) == ({}, "", None, False)
    assert numbers.versions.keys() == {"torch", "diffusers", "transformers"}
    assert [each.done for each in said] == sorted(each.done for each in said)
    assert (said[0], said[-1]) == (Progress("loading", 0), Progress("picture 2", 4.0))


def test_torch_is_measured_too(data: DataFolder) -> None:
    data.models.mkdir()
    (data.models / "mine").symlink_to(shapes_path())
    numbers = measure(order(data, Candidate("torch"), "mine", runs=1)).numbers
    assert numbers is not None
    assert (numbers.device, numbers.dtype, numbers.width) == ("cpu", "float32", 64)


def test_the_self_test_counts(both: Path, data: DataFolder) -> None:
    self_test.save(coreml_engine(both, data.root, variant="original").self_test_picture("both"), both)
    numbers = measure(order(data, runs=1)).numbers
    assert numbers is not None
    assert numbers.likeness == 99.0


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("black", "bad_image", "all black"),
        ("nan", "bad_image", "NaN in the decoded picture"),
        ("killed", "renderer_died", r"was killed \(loading\); it is likely that memory ran out"),
        ("crash", "renderer_died", r"ended by SIGABRT \(loading\): .*libc\+\+abi: terminating"),
    ],
)
def test_a_form_that_goes_wrong_fails_with_what_happened(
    both: Path, data: DataFolder, pretend: Fault, fault: str, kind: str, message: str
) -> None:
    pretend(f"{fault} in both")
    found = measure(order(data))
    assert found.numbers is None
    assert found.failure is not None
    assert found.failure.kind == kind
    assert re.search(message, found.failure.message)


def test_a_process_that_hangs_is_given_up(data: DataFolder, pretend: Fault) -> None:
    pretend("hang")
    found = measure(order(data), patience=0.2)
    assert found.failure == Failure("deadline_passed", "no progress for 0.2 s (starting); given up")


def test_a_model_for_the_systems_text_encoder_is_asked_that_way(library: Library, data: DataFolder) -> None:
    data.models.mkdir()
    (data.models / "many").symlink_to(library.converted("tiny-multilingual"))
    failure = measure(order(data, model="many")).failure
    # What it needs is not on this system; that nobody asked for it would be another complaint.
    assert failure is not None
    assert failure.message.startswith("text_encoder system-multilingual needs a worker on macOS")


def test_a_form_that_is_not_there_fails(both: Path, data: DataFolder) -> None:
    failure = measure(order(data, Candidate("coreml", "split-einsum-v2", "reference"))).failure
    assert failure is not None
    assert "has no variant split-einsum-v2; it has original, split-einsum" in failure.message
    failure = measure(order(data, Candidate("coreml", "original", "cpu_and_ne"))).failure
    assert failure is not None
    assert failure.kind == "settings"


@pytest.mark.usefixtures("both", "data")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_no_process(
    pretend: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    monkeypatch.setenv("MEASURED_READY", str(ready))
    pretend("hang")
    command = subprocess.Popen([sys.executable, "-m", "renderkiln.producer", "tune", "both"], stdout=subprocess.DEVNULL)
    child = int(ready.read_text())
    command.send_signal(number)
    assert command.wait(60) == 130
    assert not psutil.pid_exists(child)

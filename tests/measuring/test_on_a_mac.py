"""Tuning on a Mac of which only coremltools' compiled binding is not real: compiling, units, shares, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import Run

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.worker.measuring.process import measure
from renderkiln.worker.measuring.records import Candidate, Order
from renderkiln.worker.models import choosing
from renderkiln.worker.models.choosing import Wishes, pick_form
from renderkiln.worker.runtimes.apple import system
from renderkiln.worker.runtimes.apple.cache import FOLDER, CompileCache

from .conftest import Fault

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, pretend: Fault) -> None:
    """This process, and those that it starts, believe that they are on a Mac."""
    monkeypatch.setattr(system, "on_macos", lambda: True)
    monkeypatch.setattr(choosing, "_IS_MAC", True)
    monkeypatch.setenv("MEASURED_ON", "mac")
    pretend("")


def test_what_was_compiled_is_measured_by_a_second_process(both: Path, data: DataFolder, mac: None) -> None:
    order = Order("both", data.root, Candidate("coreml", "original", "cpu_and_gpu"), steps=2, runs=1)
    first, second = measure(order), measure(order)
    assert first.numbers is not None, first.failure
    assert second.numbers is not None, second.failure
    assert first.cold_load_seconds is not None
    assert first.cold_load_seconds > 0
    assert second.cold_load_seconds is None
    assert first.numbers.device == "cpu_and_gpu"
    assert set(first.numbers.shares) == {"text_encoder", "unet", "vae_decoder"}
    assert first.numbers.shares["unet"].devices == {"neural_engine": 0.5, "cpu": 0.25, "gpu": 0.25}
    assert first.numbers.no_shares == ""
    assert {entry.compute_unit for entry in CompileCache(data.root / FOLDER).entries()} == {"cpu_and_gpu"}


def test_units_are_measured_in_turn_and_the_best_is_rendered_with(
    run: Run, both: Path, data: DataFolder, mac: None
) -> None:
    said = run("tune", "both", "--steps", "2", "--runs", "1", "--variants", "split-einsum", "--json")
    assert said.code == 0, said.err
    forms = said.json["forms"]
    assert {form["compute_unit"] for form in forms} == {"cpu_and_ne", "cpu_and_gpu"}
    assert [form["failure"] for form in forms] == [None, None]
    # Two chunks, each with shares of its own.
    assert {"unet 1", "unet 2"} < set(forms[0]["numbers"]["shares"])
    ledger = Ledger(data.ledger)
    tuned = ledger.tuned_form("both")
    ledger.close()
    chosen = said.json["chosen"]
    assert tuned == (chosen["variant"], chosen["unit"])
    form = pick_form(both, Wishes(), tuned)
    assert form is not None
    assert (form.variant, form.unit) == tuned


def test_that_the_neural_engines_compiler_refuses_shows(
    both: Path, data: DataFolder, mac: None, pretend: Fault
) -> None:
    pretend("refused")
    order = Order("both", data.root, Candidate("coreml", "original", "cpu_and_ne"), steps=2, runs=1)
    found = measure(order)
    assert found.numbers is not None, found.failure
    assert found.refused

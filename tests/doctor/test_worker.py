"""The worker's part: models whole and broken, and in which form they are rendered; what Core ML compiled."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.models import InstalledModel, find_model
from renderkiln.home.settings import load
from renderkiln.worker.checkups import (
    check_compiled,
    check_rendering,
    judge_base_install,
    judge_compiled,
    judge_coreai,
    judge_form,
)
from renderkiln.worker.models.choosing import Choice, Form
from renderkiln.worker.needs import RENDERING
from renderkiln.worker.runtimes.apple.policy import Entry

from .conftest import GIGA, states

pytestmark = pytest.mark.usefixtures("no_settings")
MODEL = InstalledModel("sd15", Path("/m/sd15"), "StableDiffusionPipeline", 2 * GIGA, packaged=False)


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    """A data folder with a copy of the demo model."""
    folder = DataFolder(tmp_path / "data").ensure()
    shutil.copytree(find_model(folder, "shapes"), folder.models / "mine")
    return folder


def said_of_mine(data: DataFolder, **flags: str) -> tuple[str, str]:
    found = {each.about: each for each in check_rendering(load(data_dir=data.root, **flags))}
    return found["model mine"].state, found["model mine"].says


def test_a_whole_model_is_said_to_be_rendered_and_by_what(data: DataFolder) -> None:
    assert said_of_mine(data) == (
        "ok",
        "StableDiffusionPipeline, 16 MB: rendered by torch, as the model is not converted",
    )


def test_a_model_without_a_file_is_a_problem(data: DataFolder) -> None:
    (data.models / "mine" / "unet" / "config.json").unlink()
    state, says = said_of_mine(data)
    assert state == "problem"
    assert "config.json is missing" in says


def test_weights_that_were_cut_off_are_a_problem(data: DataFolder) -> None:
    (weights,) = (data.models / "mine" / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    state, says = said_of_mine(data)
    assert state == "problem"
    assert weights.name in says


def test_a_manifest_that_does_not_fit_its_files_is_a_problem(data: DataFolder) -> None:
    (data.models / "mine" / "manifest.json").write_text("{}")
    state, says = said_of_mine(data)
    assert state == "problem"
    assert "manifest" in says


def test_a_model_of_another_kind_is_not_rendered(data: DataFolder) -> None:
    index = data.models / "mine" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "FluxPipeline"}))
    assert said_of_mine(data) == ("warning", "is a FluxPipeline, which renderkiln cannot run")


def test_what_was_asked_for_and_is_not_there_is_said(data: DataFolder) -> None:
    state, says = said_of_mine(data, engine="coreml")
    assert state == "warning"
    assert "holds no stages that are converted to Core ML" in says


def test_downloads_that_did_not_end_are_counted(data: DataFolder) -> None:
    begun = data.models / ".coming" / "owner+name@0123"
    begun.mkdir(parents=True)
    (begun / "weights").write_bytes(b"x" * 2_000_000)
    found = check_rendering(load(data_dir=data.root))[-1]
    assert (found.about, found.state) == ("downloads", "warning")
    assert found.says.startswith("1 begun and not ended, 2 MB")


def test_a_ledger_is_read_for_what_was_tuned_and_never_changed(data: DataFolder) -> None:
    sqlite3.connect(data.ledger).close()  # of a version that knew no tuning
    before = data.ledger.read_bytes()
    assert said_of_mine(data)[0] == "ok"
    assert data.ledger.read_bytes() == before
    ledger = Ledger(data.ledger)
    ledger.tuned("mine", "original", "cpu_and_gpu", {})
    ledger.close()
    assert said_of_mine(data)[0] == "ok"


@pytest.mark.parametrize(
    ("form", "kinds", "has_coremltools", "state", "said"),
    [
        (None, (), False, "ok", "2.0 GB: rendered by torch"),
        (Form("original", Path("/m"), "reference"), (".mlpackage",), True, "ok", "original, rendered on the reference"),
        (Form("split-einsum", Path("/m"), "cpu_and_ne"), (".mlmodelc",), True, "ok", "by Core ML on cpu_and_ne"),
        (Form("original", Path("/m"), "reference"), (".mlmodelc",), True, "warning", "cannot be rendered elsewhere"),
        (
            Form("coreai", Path("/m"), "cpu_and_gpu", "coreai"),
            (".aimodel",),
            False,
            "ok",
            "by Core AI on cpu_and_gpu, as",
        ),
        (
            Form("coreai", Path("/m"), "reference", "coreai"),
            (".aimodel",),
            False,
            "ok",
            "interpreter, slowly, as it is",
        ),
        (
            Form("original", Path("/m"), "cpu_and_gpu"),
            (".mlpackage",),
            False,
            "warning",
            "coremltools is not installed",
        ),
    ],
)
def test_forms(form: Form | None, kinds: tuple[str, ...], has_coremltools: bool, state: str, said: str) -> None:
    finding = judge_form(MODEL, Choice(form, "as it is"), kinds, has_coremltools=has_coremltools)
    assert (finding.state, said in finding.says) == (state, True)


def test_core_ai() -> None:
    there = judge_coreai(None, on_all_units=True)
    slow = judge_coreai(None, on_all_units=False)
    none = judge_coreai("needs macOS 26 or later", on_all_units=False)
    assert states([there, slow, none]) == ["ok", "ok", "ok"]
    assert (there.says, "macOS 27" in slow.says, "needs macOS 26" in none.says) == ("on all units", True, True)


def test_a_machine_that_only_asks_is_well_and_half_an_install_is_not() -> None:
    assert states([judge_base_install(RENDERING), judge_base_install(["torch"])]) == ["ok", "warning"]


def entry(build: str = "24G84", *, damaged: bool = False) -> Entry:
    return Entry(f"e-{build}-{damaged}", "/m", "0" * 64, "cpu_and_ne", build, GIGA, 60, 0, damaged=damaged)


def test_the_compile_cache() -> None:
    good = judge_compiled([entry(), entry()], "24G84", 32 * GIGA)
    bad = judge_compiled([entry(), entry("23A1"), entry(damaged=True)], "24G84", 32 * GIGA)
    assert (good.state, good.says) == ("ok", "2.0 GB in 2 compiled models, of 32.0 GB that are kept")
    assert (bad.state, bad.do) == ("warning", "renderkiln models cache clean")
    assert "2 (2.0 GB) are damaged or of another macOS" in bad.says


def test_where_nothing_was_compiled_nothing_is_made(tmp_path: Path) -> None:
    assert states(check_compiled(load(data_dir=tmp_path / "data"))) in ([], ["ok"])
    assert not (tmp_path / "data").exists()

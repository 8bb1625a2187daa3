"""`renderkiln models plan`: what it prints and remembers, and what it does not need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.models.made import converted, small_files

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import MemoryRecords
from renderkiln.home.settings import load
from renderkiln.worker.memory.pressure import Probe
from renderkiln.worker.memory.sizes import EMPTY_RENDERER, RENDERER, default_budget
from renderkiln.worker.protocol import MemoryUse, StageMeasured
from renderkiln.worker.supervisor.memory.rules import MemoryRules

from .conftest import Run

MB, GB = 10**6, 10**9


@pytest.fixture
def data(no_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    folder = DataFolder(tmp_path / "data").ensure()
    monkeypatch.setenv("RENDERKILN_DATA_DIR", str(folder.root))
    return folder


@pytest.fixture
def records(data: DataFolder) -> Iterator[MemoryRecords]:
    with contextlib.closing(Ledger(data.ledger)) as ledger:
        yield MemoryRecords(ledger)


def test_the_stages_and_the_policies_are_shown_within_80_columns(run: Run, data: DataFolder) -> None:
    said = run("models", "plan", "shapes", "--memory-budget", "490MB", "--device", "cpu")
    assert (said.code, said.err) == (0, "")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[0] == ["shapes", "(torch,", "float32)", "at", "64x64", "with", "490", "MB"]
    assert ["unet", "26", "+", "8", "0.026", "estimated", "loaded", "for", "each", "job"] in lines
    assert ["vae_decoder", "2", "+", "26", "0.002", "estimated", "stays"] in lines
    policies = {line[0]: line for line in lines if line and line[0] in ("resident", "auto", "jit")}
    assert policies["resident"] == ["resident", "0.51", "0.0", "no", "█" * 24 + "▶"]
    assert policies["auto"] == ["auto", "(as", "set)", "0.49", "0.026", "yes", "█" * 24]
    assert policies["jit"] == ["jit", "0.48", "0.028", "yes", "█" * 24]
    assert max(map(len, said.out.splitlines())) <= 80
    assert not data.ledger.exists()  # nor is one made


def test_the_numbers_are_there_for_scripts_under_the_budget_of_a_worker(run: Run, data: DataFolder) -> None:
    said = run("models", "plan", "shapes", "--json", "--device", "cpu", "--size", "128x64").json
    assert said["budget_bytes"] == default_budget(Probe().read().total_bytes)
    assert (said["model"], said["engine"], said["dtype"], said["variant"]) == ("shapes", "torch", "float32", None)
    assert (said["size"], said["policy"], said["fits"], said["remembered"]) == ([128, 64], "auto", True, None)
    assert [each["stage"] for each in said["stages"]] == ["text_encoder", "unet", "vae_decoder"]
    assert {each["under_auto"] for each in said["stages"]} == {"stays"}
    assert [each["policy"] for each in said["policies"]] == ["resident", "auto", "jit"]
    assert said["policies"][0]["peak_bytes"] > said["policies"][2]["peak_bytes"] > said["least_bytes"]


def test_what_a_worker_measured_is_in_it(run: Run, records: MemoryRecords) -> None:
    rules = MemoryRules(load(device="cpu"), records, 16 * GB)
    measured = {"unet": StageMeasured(26 * MB, 0.5, 300 * MB, 64 * 64)}
    rules.learn("shapes", None, MemoryUse(0, 0, 0.0, 0, measured=measured))
    said = run("models", "plan", "shapes", "--device", "cpu", "--json").json
    unet = said["stages"][1]
    assert (unet["working_bytes"], unet["load_seconds"]) == (300 * MB, 0.5)
    assert (unet["working_measured"], unet["load_measured"]) == (True, True)
    assert "+ 300        0.5  measured" in run("models", "plan", "shapes", "--device", "cpu").out
    assert (said["renderer_bytes"], said["renderer_measured"]) == (EMPTY_RENDERER, False)
    # In another form, it is another measurement.
    said = run("models", "plan", "shapes", "--device", "mps", "--json").json
    assert not said["stages"][1]["working_measured"]


def test_what_the_renderer_holds_is_the_workers_word_too(run: Run, records: MemoryRecords) -> None:
    rules = MemoryRules(load(device="cpu"), records, 16 * GB)
    plan = ("models", "plan", "shapes", "--device", "cpu", "--memory", "jit", "--json")
    before = run(*plan).json
    for size in (500, 510):  # the second is not worth a write
        measured = {RENDERER: StageMeasured(size * MB, 0.0, 0, 0)}
        rules.learn("shapes", None, MemoryUse(0, 0, 0.0, 0, measured=measured))
    said = run(*plan).json
    assert (said["policy"], said["renderer_bytes"], said["renderer_measured"]) == ("jit", 500 * MB, True)
    assert said["least_bytes"] == before["least_bytes"] + 50 * MB
    assert [each["stage"] for each in said["stages"]] == ["text_encoder", "unet", "vae_decoder"]


def test_that_memory_ran_out_is_remembered_until_it_is_forgotten(run: Run, records: MemoryRecords) -> None:
    budget = ("--memory-budget", "8GB")
    rules = MemoryRules(load(memory_budget="8GB"), records, 16 * GB)
    for _ in range(3):
        assert rules.ran_out("shapes", "memory ran out on cpu") is not None
    said = run("models", "plan", "shapes", *budget).out
    assert (
        "Remembered: under auto with 8.0 GB, only the stage at work is kept in memory, and pictures are decoded in"
        in said
    )
    assert "since memory ran out (memory ran out on cpu). Without that, auto would take " in said
    assert "`renderkiln models plan shapes --forget` forgets it." in said
    assert "Under auto, pictures are decoded in tiles" in said
    as_json = run("models", "plan", "shapes", *budget, "--json").json
    remembered = {"step": 3, "why": "memory ran out on cpu", "settings": "auto 8000000000"}
    assert as_json["remembered"] == {**remembered, "counts": True}
    assert (as_json["policies"][1]["in_tiles"], as_json["stages"][1]["under_auto"]) == (True, "each job")

    said = run("models", "plan", "shapes", "--memory-budget", "9GB").out
    assert "Under these settings that does not count." in said
    as_json = run("models", "plan", "shapes", "--memory-budget", "9GB", "--json").json
    assert (as_json["remembered"]["counts"], as_json["stages"][1]["under_auto"]) == (False, "stays")

    said = run("models", "plan", "shapes", "--forget").out
    assert said.startswith("forgotten of shapes: under auto with 8.0 GB, only the stage at work is kept in memory, and")
    assert "Workers that are up keep to it until they are started again." in said
    assert run("models", "plan", "shapes", "--forget").out == "nothing was kept of shapes\n"
    assert "Remembered" not in run("models", "plan", "shapes", *budget).out
    records.tightened("shapes", 1, "why", "auto 8000000000")
    assert run("models", "plan", "shapes", "--forget", "--json").json == {
        "model": "shapes",
        "forgotten": {"step": 1, "why": "why", "settings": "auto 8000000000"},
    }
    assert run("models", "plan", "shapes", "--forget", "--json").json == {"model": "shapes", "forgotten": None}


def test_a_model_that_cannot_fit_is_an_answer_and_no_error(run: Run, data: DataFolder) -> None:
    folder = small_files(data.models / "sd15", ("text_encoder", "unet", "vae"))
    stages = {"text_encoder": 246 * MB, "unet": 1_720 * MB, "vae_decoder": 99 * MB}
    converted(folder, stages)
    converted(folder / "split-einsum", {**stages, "unet": 650 * MB}, "split-einsum")
    said = run("models", "plan", "sd15", "--variant", "original", "--memory-budget", "2.3GB")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("sd15 (coreml, original on reference) at 512x512 with 2.3 GB\n")
    assert "sd15 does not fit: its unet alone takes 2,683 MB with the renderer around it" in said.out
    assert said.out.endswith("Its variant split-einsum would fit (--engine coreml --variant split-einsum).\n")
    as_json = run("models", "plan", "sd15", "--variant", "original", "--memory-budget", "2.3GB", "--json").json
    assert (as_json["fits"], as_json["smaller_variants"]) == (False, ["split-einsum"])
    assert (as_json["engine"], as_json["variant"], as_json["compute_unit"]) == ("coreml", "original", "reference")
    assert not as_json["policies"][2]["in_tiles"]  # a converted decoder has none


def test_resident_heeds_no_budget(run: Run, data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERKILN_MEMORY", "resident")
    said = run("models", "plan", "shapes", "--memory-budget", "490MB").out
    assert "resident (as set)" in said
    assert "The policy is resident, which heeds no budget: take auto, or a larger machine." in said


def test_the_form_is_the_one_that_was_tuned(run: Run, data: DataFolder) -> None:
    folder = small_files(data.models / "both", ("text_encoder", "unet", "vae"))
    for variant in ("original", "split-einsum"):
        converted(folder / variant, {"text_encoder": 1, "unet": 2, "vae_decoder": 3}, variant)
    with contextlib.closing(Ledger(data.ledger)) as ledger:
        ledger.tuned("both", "split-einsum", "reference", {})
    assert run("models", "plan", "both").out.startswith("both (coreml, split-einsum on reference) at 512x512")


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["shaps"], 2, "Did you mean 'shapes'?"),
        (["shapes", "--memory-budget", "lots"], 2, "memory_budget = 'lots' (from --memory-budget)"),
        (["shapes", "--memory-budget", "0"], 2, "greater than or equal to 1000000"),
        (["shapes", "--size", "64"], 2, "write WIDTHxHEIGHT"),
        (["shapes", "--size", "64x66"], 2, "sides must be multiples of 8"),
        (["shapes", "--engine", "coreml"], 1, "holds no stages that are converted to Core ML"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else None,
)
def test_what_cannot_be_planned_is_refused(
    run: Run, data: DataFolder, arguments: list[str], code: int, complaint: str
) -> None:
    said = run("models", "plan", *arguments)
    assert (said.code, said.out) == (code, "")
    assert complaint in said.err


def test_a_damaged_model_and_a_damaged_ledger_are_said(run: Run, data: DataFolder) -> None:
    folder = small_files(data.models / "half", ("text_encoder", "unet", "vae"))
    assert run("models", "plan", "half").err == (
        f"renderkiln: {folder / 'text_encoder'} holds no weights (*.safetensors): the model is not complete\n"
    )
    data.ledger.write_text("no ledger at all, but a text of some length")
    said = run("models", "plan", "shapes")
    assert (said.code, "cannot be opened" in said.err) == (3, True)

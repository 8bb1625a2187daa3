"""`renderkiln tune` and `renderkiln bench model`, with real measuring processes."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Run

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.origin import Origin
from renderkiln.worker.demo import shapes_path
from renderkiln.worker.measuring import process
from renderkiln.worker.measuring.records import Candidate, Measurement, StageShares
from renderkiln.worker.runtimes.apple import system

from .conftest import Fault
from .made import failed, measured

pytestmark = pytest.mark.timeout(600)
QUICK = ("--steps", "2", "--runs", "1")
FORMS = ["original on reference", "split-einsum on reference"]


def kept(data: DataFolder, model: str = "both") -> tuple[str, str] | None:
    ledger = Ledger(data.ledger)
    try:
        return ledger.tuned_form(model)
    finally:
        ledger.close()


@pytest.mark.usefixtures("both")
def test_the_best_form_is_kept_and_a_broken_one_is_not_chosen(run: Run, data: DataFolder, pretend: Fault) -> None:
    pretend("black in split-einsum")
    said = run("tune", "both", *QUICK, "--json")
    assert said.code == 0, said.err
    report = said.json
    assert report["chosen"] == {"variant": "original", "unit": "reference"}
    assert (report["model"], report["steps"], report["runs"]) == ("both", 2, 1)
    good, bad = report["forms"]
    assert (good["variant"], good["failure"], len(good["numbers"]["latencies"])) == ("original", None, 1)
    assert good["numbers"]["peak_bytes"] > 100_000_000
    assert (bad["variant"], bad["numbers"], bad["failure"]["kind"]) == ("split-einsum", None, "bad_image")
    assert said.err.splitlines() == ["1 of 2: original on reference: done", "2 of 2: split-einsum on reference: done"]
    assert kept(data) == ("original", "reference")
    assert "best here  original on reference" in run("models", "show", "both").out
    assert run("models", "show", "both", "--json").json["tuned"] == {"variant": "original", "compute_unit": "reference"}

    assert run("tune", "both", "--forget").out == "both is rendered as the rule says again\n"
    assert kept(data) is None
    assert run("models", "show", "both", "--json").json["tuned"] is None
    assert run("tune", "both", "--forget", "--json").json == {"model": "both", "forgotten": False}


@pytest.mark.usefixtures("both")
def test_where_no_form_renders_nothing_is_kept(run: Run, data: DataFolder, pretend: Fault) -> None:
    ledger = Ledger(data.ledger)
    ledger.tuned("both", "split-einsum", "reference", {})
    ledger.close()
    pretend("killed in both")
    said = run("tune", "both", *QUICK, "--variants", "original")
    assert said.code == 1
    assert "original on reference failed (renderer_died): its process was killed" in said.out
    assert "renderkiln: no form of both renders rightly here, so that nothing was kept" in said.err
    assert kept(data) == ("split-einsum", "reference")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> dict[str, Measurement]:
    """What measuring a form gives, by its name; fills in for the processes."""
    found: dict[str, Measurement] = {}
    monkeypatch.setattr(process, "measure", lambda order, *_: found[str(order.candidate)])
    return found


@pytest.mark.usefixtures("both")
def test_the_table_marks_what_was_chosen_and_says_what_counts(
    run: Run, data: DataFolder, results: dict[str, Measurement]
) -> None:
    shares = {"unet": StageShares({"cpu": 0.4, "neural_engine": 0.6}, {"softmax": 0.3, "gelu": 0.1})}
    results[FORMS[0]] = measured(2.0, 2 * 10**9, "original", "reference", shares=shares)
    fast = measured(1.5, 3 * 10**9, "split-einsum", "reference", no_shares="this macOS has no plans")
    results[FORMS[1]] = Measurement(fast.candidate, fast.numbers, cold_load_seconds=71.5, refused=True)
    said = run("tune", "both")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[1] == ["original", "reference", "2.00", "10.00", "3.00", "2.5", "2.00"]
    assert lines[2] == ["→", "split-einsum", "reference", "1.50", "13.33", "2.50", "2.5", "71.5", "3.00"]
    assert said.out.splitlines()[3:] == [
        "original on reference: unet is meant for Neural Engine 60%, CPU 40% (on the CPU: softmax 30%, gelu 10%)",
        "split-einsum on reference: the Neural Engine's compiler refused a part of it, which runs elsewhere",
        "split-einsum on reference: which device computes what is not known: this macOS has no plans",
        "both is rendered as split-einsum on reference from the next job on",
    ]
    assert kept(data) == ("split-einsum", "reference")


@pytest.mark.usefixtures("both")
def test_settings_have_the_last_word_and_that_is_said(
    run: Run, results: dict[str, Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    results[FORMS[0]] = failed("original", "reference")
    results[FORMS[1]] = measured(1.5, 1, "split-einsum", "reference")
    monkeypatch.setenv("RENDERKILN_VARIANT", "original")
    said = run("tune", "both")
    assert said.out.splitlines()[-1].startswith("but not by a worker with the settings of here, which say original on")


@pytest.mark.usefixtures("both")
def test_what_would_be_measured(run: Run, data: DataFolder) -> None:
    assert run("tune", "both", "--dry-run").out.splitlines() == FORMS
    chosen = run("tune", "both", "--dry-run", "--variants", "SPLIT_EINSUM", "--units", "reference", "--json").json
    assert chosen == {"model": "both", "forms": [{"variant": "split-einsum", "unit": "reference"}]}
    assert not data.ledger.exists()


def test_on_a_mac_its_two_units_are_tried_and_others_where_asked(
    run: Run, both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "on_macos", lambda: True)
    from renderkiln.worker.measuring import candidates
    from renderkiln.worker.models import choosing
    from renderkiln.worker.models.machine import Advice

    monkeypatch.setattr(choosing, "_IS_MAC", True)
    monkeypatch.setattr(candidates, "advice", lambda: Advice("original", "cpu_and_gpu"))
    listed = run("tune", "both", "--dry-run").out.splitlines()
    assert listed[0] == "original on cpu_and_gpu"
    assert set(listed) == {f"{v} on {u}" for v in ("original", "split-einsum") for u in ("cpu_and_ne", "cpu_and_gpu")}
    asked = run("tune", "both", "--dry-run", "--variants", "original", "--units", "CPU_ONLY,cpu_only").out
    assert asked == "original on cpu_only\n"


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tune", "both", "--units", "cpu_and_ne"), "compute unit cpu_and_ne needs macOS"),
        (("tune", "both", "--units", "tpu"), "no compute unit 'tpu'"),
        (("tune", "both", "--units", "auto"), "auto is no compute unit to measure"),
        (("tune", "both", "--variants", "split-einsum-v2"), "has no variant 'split-einsum-v2'"),
        (("tune", "shapes"), "holds no converted stages"),
        (("tune", "bothh"), "Did you mean 'both'"),
        (("bench", "model", "both", "--compute-unit", "CPU_AND_NE"), "compute unit cpu_and_ne needs macOS"),
        (("bench", "model", "both", "--variant", "v3"), "variant"),
        (("bench", "model", "both", "--json", "--submit-text"), "give one of them"),
    ],
)
def test_bad_input(run: Run, arguments: tuple[str, ...], message: str) -> None:
    said = run(*arguments)
    assert (said.code, said.out) == (2, "")
    assert message in said.err


@pytest.mark.usefixtures("both")
def test_bench_measures_what_a_worker_would_render_with(run: Run, data: DataFolder) -> None:
    ledger = Ledger(data.ledger)
    ledger.tuned("both", "split-einsum", "reference", {})
    ledger.close()
    report = run("bench", "model", "both", *QUICK, "--json").json
    assert (report["engine"], report["variant"], report["compute_unit"]) == ("coreml", "split-einsum", "reference")
    assert report["model"] == {"name": "both", "revision": None, "bits": 6}
    assert report["numbers"]["iterations_per_second"] > 0


@pytest.mark.usefixtures("both")
def test_a_form_that_fails_is_an_error(run: Run, results: dict[str, Measurement]) -> None:
    results[FORMS[0]] = failed("original", "reference")
    said = run("bench", "model", "both")
    assert (said.code, said.out) == (1, "")
    assert "renderkiln: both, original on reference: the picture is all black" in said.err
    assert run("bench", "model", "both", "--json").json["failure"]["kind"] == "bad_image"


def test_the_row(run: Run, both: Path, results: dict[str, Measurement]) -> None:
    found = measured(2.634, 2_340_000_000, "original", "reference")
    results[FORMS[0]] = Measurement(found.candidate, found.numbers, cold_load_seconds=71.5)
    said = run("bench", "model", "both")
    rows = {
        line[: line.index("  ")].strip(): line.split("  ")[-1].strip() for line in map(str.strip, said.out.splitlines())
    }
    assert rows | {"device": ""} == {
        "device": "",
        "compute unit": "REFERENCE",
        "attention": "ORIGINAL",
        "end-to-end latency (s)": "2.63",
        "diffusion speed (iter/s)": "7.59",
        "load (s)": "2.5 (first 71.5)",
        "peak memory (GB)": "2.34",
    }


def test_a_text_to_share_says_what_was_measured_and_nothing_else(
    run: Run, both: Path, data: DataFolder, results: dict[str, Measurement]
) -> None:
    commit = "0123456789" * 4
    origin = Origin(repository="apple/coreml-stable-diffusion-2-1-base", revision=commit)
    (both / "origin.json").write_text(origin.model_dump_json())
    results[FORMS[0]] = measured(2.634, 2_340_000_000, "original", "reference", versions={"torch": "2.13.0"})
    text = run("bench", "model", "both", "--submit-text").out
    header, rule, row, empty, *facts = text.splitlines()
    assert header.count("|") == rule.count("|") == row.count("|") == 8
    assert row.endswith("| REFERENCE | ORIGINAL | 2.63 | 7.59 | 2.5 | 2.34 |")
    assert empty == ""
    assert facts[0] == f"- model: apple/coreml-stable-diffusion-2-1-base at {commit}, 16 bits"
    assert facts[1] == "- picture: 512 × 512, 20 steps; median of 3, the first one took 3.63 s"
    assert facts[3].endswith("torch 2.13.0")
    for private in (socket.gethostname(), getpass.getuser() + "@", str(data.root), str(Path.home())):
        assert private not in text


def test_torch_is_what_auto_takes_for_torchs_weights(run: Run, data: DataFolder, results: dict[str, Any]) -> None:
    data.models.mkdir()
    (data.models / "mine").symlink_to(shapes_path())
    numbers = measured(1.0, 1).numbers
    results["torch"] = Measurement(Candidate("torch"), numbers)
    report = json.loads(run("bench", "model", "mine", "--json").out)
    assert (report["engine"], report["variant"], report["model"]["bits"]) == ("torch", "", None)

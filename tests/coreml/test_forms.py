"""In which form a worker renders a converted model, and when that takes another renderer."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from renderkiln.home.ledger import Ledger
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import LedgerError, ModelLoadError, ModelNotFoundError, SettingsError
from renderkiln.worker.models import choosing
from renderkiln.worker.models.choosing import Form, Wishes, pick_form
from renderkiln.worker.models.machine import Advice
from renderkiln.worker.protocol import FULL_PRECISION, NotReady, Ready, RendererConfig, WarmUp
from renderkiln.worker.supervisor.child import Renderer
from renderkiln.worker.supervisor.forms import Forms

from .conftest import Library

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def both(library: Library, tmp_path: Path) -> Path:
    """A model with two variants, each in a folder of its own."""
    folder = tmp_path / "both"
    folder.mkdir()
    for source, name in (("tiny-core", "original"), ("shapes-small", "split-einsum")):
        (folder / name).symlink_to(library.converted(source))
    return folder


def as_a_mac(monkeypatch: pytest.MonkeyPatch, advice: Advice) -> None:
    monkeypatch.setattr(choosing, "_IS_MAC", True)
    monkeypatch.setattr(choosing, "advice", lambda: advice)


SMALL_MAC, LARGE_MAC = Advice("split-einsum", "cpu_and_ne"), Advice("original", "cpu_and_gpu")


def test_elsewhere_the_reference_runtime_renders_what_every_system_can(both: Path) -> None:
    form = pick_form(both, Wishes())
    assert form is not None
    assert form == Form("original", both / "original", "reference")


@pytest.mark.parametrize("advice", [SMALL_MAC, LARGE_MAC])
def test_on_a_mac_the_rule_decides(monkeypatch: pytest.MonkeyPatch, both: Path, advice: Advice) -> None:
    as_a_mac(monkeypatch, advice)
    assert pick_form(both, Wishes()) == Form(advice.variant, both / advice.variant, advice.compute_unit)


def test_the_unit_suits_the_variant_that_is_there(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    as_a_mac(monkeypatch, SMALL_MAC)
    form = pick_form(library.converted("tiny-core"), Wishes())
    # The original attention loads for minutes on the Neural Engine, and is slow there.
    assert form is not None
    assert (form.variant, form.unit) == ("original", "cpu_and_gpu")


def test_what_was_measured_goes_before_the_rule_and_wishes_before_both(
    monkeypatch: pytest.MonkeyPatch, both: Path
) -> None:
    as_a_mac(monkeypatch, SMALL_MAC)
    tuned = ("original", "cpu_and_ne")
    assert pick_form(both, Wishes(), tuned) == Form("original", both / "original", "cpu_and_ne")
    wished = pick_form(both, Wishes(variant="split-einsum", compute_unit="all"), tuned)
    assert wished == Form("split-einsum", both / "split-einsum", "all")
    # A variant that was removed since, or a ledger from another system, counts for nothing.
    assert pick_form(both, Wishes(), ("split-einsum-v2", "cpu_only")) == pick_form(both, Wishes())
    monkeypatch.undo()
    assert pick_form(both, Wishes(), tuned) == Form("original", both / "original", "reference")


def test_auto_renders_with_torch_what_has_torchs_weights(library: Library) -> None:
    assert pick_form(library.torch("tiny"), Wishes()) is None
    assert pick_form(library.converted("tiny-core"), Wishes(engine="torch")) is None
    with pytest.raises(ModelLoadError, match="no stages that are converted to Core ML"):
        pick_form(library.torch("tiny"), Wishes(engine="coreml"))


@pytest.mark.parametrize("wishes", [Wishes(compute_unit="all"), Wishes(compute_unit="tpu")])
def test_a_unit_that_is_not_here(both: Path, wishes: Wishes) -> None:
    with pytest.raises(SettingsError, match=r"needs macOS|no compute unit"):
        pick_form(both, wishes)


def test_the_ledger_keeps_what_was_measured(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    assert ledger.tuned_form("a/model") is None
    ledger.tuned("a/model", "original", "cpu_and_gpu", {"seconds": 3.2})
    ledger.tuned("a/model", "split-einsum", "cpu_and_ne", {"seconds": 2.1})
    ledger.close()
    again = Ledger(tmp_path / "ledger.db")
    assert again.tuned_form("a/model") == ("split-einsum", "cpu_and_ne")
    again.close()


def test_a_worker_knows_the_limits_of_its_models(
    library: Library, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = {
        "controlled": library.converted("tiny-controls"),
        "free": library.torch("tiny"),
        "broken": tmp_path / "b",
    }
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text("{")

    def tuned(model: str) -> None:
        raise LedgerError("the disk is full")

    def find(model: str) -> Path:
        if model not in folders:
            raise ModelNotFoundError(model)
        return folders[model]

    forms = Forms(Settings(data_dir=tmp_path), find, tuned)
    with caplog.at_level(logging.WARNING):
        limits = forms.limits(["controlled", "free", "broken", "gone"], ["canny"])
    assert limits.sizes == {"controlled": ((32, 32),)}
    assert limits.controlnets == {"controlled": ("edges", "depth"), "free": ("canny",)}
    assert "broken" in caplog.text
    assert forms.of("controlled") == ("original", "reference")
    assert forms.of("free") is None
    assert forms.of("broken") is None


def test_another_unit_or_another_form_of_a_model_takes_another_renderer(tmp_path: Path) -> None:
    renderer = Renderer(RendererConfig(str(tmp_path), "coreml", "auto", "auto"))
    try:

        def pid(model: str, form: tuple[str, str] | None) -> int:
            renderer.make_ready_for(model, form)
            assert renderer.pid is not None
            return renderer.pid

        first = pid("a", ("original", "cpu_and_gpu"))
        assert pid("a", ("original", "cpu_and_gpu")) == first
        assert pid("b", ("split-einsum", "cpu_and_gpu")) == first
        assert pid("torch", None) == first
        full = pid("torch", FULL_PRECISION)
        assert full != first
        first = pid("a", ("original", "cpu_and_gpu"))
        assert pid("torch", FULL_PRECISION) == first == full, "torch's precision is no compute unit"
        second = pid("c", ("split-einsum", "cpu_and_ne"))
        assert second != first
        third = pid("c", ("split-einsum-v2", "cpu_and_ne"))
        assert third not in (first, second)
        renderer.kill()
        # A new process has used no unit yet.
        fourth = pid("a", ("original", "cpu_and_gpu"))
        assert pid("a", ("original", "cpu_and_gpu")) == fourth
    finally:
        renderer.close()


def test_a_renderer_warms_a_converted_model_and_says_what_it_is(library: Library, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(library.converted("tiny-core"))
    answers = {}
    never, other_end = os.pipe()
    for variant in ("auto", "split-einsum"):
        renderer = Renderer(RendererConfig(str(tmp_path), "coreml", "auto", "auto", variant=variant))
        try:
            renderer.make_ready_for("mine", ("original", "reference"))
            renderer.send(WarmUp("mine", ("original", "reference")))
            answers[variant] = renderer.receive_or(never, 120.0)
        finally:
            renderer.close()
    os.close(never)
    os.close(other_end)
    ready, refused = answers.values()
    assert isinstance(ready, Ready)
    assert (ready.about["engine"], ready.about["device"]) == ("coreml", "reference")
    assert isinstance(refused, NotReady)
    assert "no variant split-einsum; it has original" in refused.message

"""The picture that a converted model renders at a worker's start, and what becomes of a unit that spoils it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from renderkiln.home.settings import Settings
from renderkiln.schema.errors import BadImageError, ImageInputError
from renderkiln.worker.engine import self_test
from renderkiln.worker.engine.converted.model_stages import ConvertedModelStages
from renderkiln.worker.engine.diffusers_engine import DiffusersEngine
from renderkiln.worker.models import choosing
from renderkiln.worker.models.choosing import Form
from renderkiln.worker.models.machine import Advice
from renderkiln.worker.protocol import FULL_PRECISION
from renderkiln.worker.runtimes import manifest
from renderkiln.worker.runtimes.base import Array, Runtime
from renderkiln.worker.runtimes.manifest import PackageInfo
from renderkiln.worker.runtimes.reference import ReferenceRuntime
from renderkiln.worker.supervisor.forms import Forms

from .conftest import Library, coreml_engine

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def model(library: Library, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(library.converted("shapes-small"), folder)
    return folder


def test_without_a_stored_picture_every_stage_is_tried(model: Path, tmp_path: Path) -> None:
    warm = coreml_engine(model, tmp_path).warm_up("shapes")
    assert warm.likeness is None
    assert {stage.stage for stage in warm.stages} == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}


def test_a_stored_picture_is_met(model: Path, tmp_path: Path) -> None:
    engine = coreml_engine(model, tmp_path)
    self_test.save(engine.self_test_picture("shapes"), model)
    assert [path.name for path in model.iterdir() if "self-test" in path.name] == [manifest.SELF_TEST]
    assert coreml_engine(model, tmp_path).warm_up("shapes").likeness == 99.0


def test_another_picture_than_the_stored_one_is_an_error(model: Path, tmp_path: Path) -> None:
    self_test.save(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), model)
    with pytest.raises(BadImageError, match=r"self-test picture is \d+\.\d dB .* 20 dB are needed"):
        coreml_engine(model, tmp_path).warm_up("shapes")


class Spoiled:
    """A runtime that gives a value in the place of what its model computes."""

    def __init__(self, runtime: Runtime, value: float) -> None:
        self._runtime, self._value = runtime, value
        self.inputs, self.outputs = runtime.inputs, runtime.outputs

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: np.full_like(each, self._value) for name, each in self._runtime.predict(inputs).items()}


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN in the decoded picture"), (-1.0, "all black")])
def test_a_unit_that_gives_nothing_is_found_out(model: Path, value: float, message: str) -> None:
    def open_package(path: Path, info: PackageInfo) -> Runtime:
        runtime = ReferenceRuntime.load(path)
        return Spoiled(runtime, value) if "image" in runtime.outputs else runtime

    stages = ConvertedModelStages(model, Form("original", model, "cpu_and_ne"), open_package)

    def open_stages(model: str, folder: Path) -> ConvertedModelStages:
        return stages

    engine = DiffusersEngine(lambda _name, _revision: model, open_stages, stages.info)
    with pytest.raises(BadImageError, match=f"{message}.*cpu"):
        engine.warm_up("shapes")


def test_a_unit_that_spoils_pictures_is_given_up_for_the_next(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choosing, "_IS_MAC", True)
    monkeypatch.setattr(choosing, "advice", lambda: Advice("split-einsum", "cpu_and_ne"))
    forms = Forms(Settings(data_dir=tmp_path), lambda _name: model, lambda _name: None)
    assert forms.of("shapes") == ("split-einsum", "cpu_and_ne")
    with caplog.at_level(logging.WARNING):
        assert forms.give_up("shapes", "the picture is all black")
    assert "not rendered on cpu_and_ne any more, but on cpu_and_gpu: the picture is all black" in caplog.text
    assert forms.of("shapes") == ("split-einsum", "cpu_and_gpu")
    assert forms.of("other") == ("split-einsum", "cpu_and_ne")
    assert forms.give_up("shapes", "again")
    assert forms.of("shapes") == ("split-einsum", "cpu_only")
    assert not forms.give_up("shapes", "again")
    assert forms.of("shapes") == ("split-einsum", "cpu_only")


@pytest.mark.parametrize(
    ("dtype", "device", "may_be_half"),
    [
        *(("auto", "mps", True), ("auto", "auto", True), ("auto", "cpu", False)),
        *(("float16", "cpu", True), ("bfloat16", "cpu", True), ("float32", "mps", False)),
    ],
)
def test_half_precision_that_spoils_pictures_is_given_up_for_full(
    tmp_path: Path, dtype: Any, device: Any, may_be_half: bool
) -> None:
    forms = Forms(Settings(data_dir=tmp_path, dtype=dtype, device=device), lambda _name: tmp_path, lambda _name: None)
    assert forms.of("any") is None
    assert forms.give_up("any", "the picture is all black") == may_be_half
    assert forms.of("any") == (FULL_PRECISION if may_be_half else None)
    assert not forms.give_up("any", "again")


def test_where_there_is_one_unit_it_is_not_given_up(model: Path, tmp_path: Path) -> None:
    forms = Forms(Settings(data_dir=tmp_path), lambda _name: model, lambda _name: None)
    assert not forms.give_up("shapes", "the picture is all black")
    assert forms.of("shapes") == ("split-einsum", "reference")


def test_a_picture_that_cannot_be_read_is_said(model: Path, tmp_path: Path) -> None:
    (model / manifest.SELF_TEST).write_bytes(b"not a picture")
    with pytest.raises(ImageInputError, match="self-test picture cannot be read"):
        coreml_engine(model, tmp_path).warm_up("shapes")


def test_likeness_is_in_decibels(tmp_path: Path) -> None:
    rgb = np.full((8, 8, 3), 100, dtype=np.uint8)
    Image.fromarray(rgb + 10).save(tmp_path / "stored.png")
    assert self_test.likeness(rgb, tmp_path / "stored.png") == pytest.approx(10 * np.log10(255**2 / 100))

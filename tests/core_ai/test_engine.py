"""The engine over Core AI assets, on Apple's interpreter, against the torch modules that they were made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.coreml.conftest import coreml_engine
from tests.coreml.test_engine import EDGES, TASKS, compare
from tests.engine.conftest import Renderer

from renderkiln.schema.errors import InvalidSpecError, ModelLoadError
from renderkiln.worker.runtimes import manifest
from renderkiln.worker.runtimes.coreai.asset import open_asset

from .conftest import Affine, Library, Make, examples, save

pytestmark = pytest.mark.timeout(600)
#: Pictures in decibels; in float32 they are mostly equal bit by bit.
BAR = 50.0


@pytest.mark.parametrize("task", TASKS)
def test_every_task(converted: Make, original: Make, task: str) -> None:
    compare(converted("tiny-coreai"), original("tiny"), BAR, **TASKS[task])
    compare(converted("tiny-coreai"), original("tiny"), BAR, guidance_scale=1.0, scheduler="euler a", **TASKS[task])


@pytest.mark.parametrize("task", TASKS)
def test_sdxl(converted: Make, original: Make, task: str) -> None:
    compare(converted("xl-coreai_pictures"), original("xl"), BAR, guidance_scale=5.0, **TASKS[task])


def test_controlnets(converted: Make, original: Make) -> None:
    controls = ({"model": "edges", "image": EDGES, "conditioning_scale": 0.7},)
    compare(converted("tiny-coreai_controls"), original("tiny"), BAR, controlnets=controls)
    compare(converted("tiny-coreai_controls"), original("tiny"), BAR)


@pytest.mark.parametrize("width", [32, 48])
def test_each_size_of_one_asset(converted: Make, original: Make, width: int) -> None:
    compare(converted("tiny-coreai_sizes"), original("tiny"), BAR, width=width, height=32)


def test_other_sizes_are_refused_and_the_safety_checker_is_asked(converted: Make) -> None:
    render = converted("tiny-coreai")
    with pytest.raises(InvalidSpecError, match="32 × 32"):
        render(width=48, height=32)
    render(safety_checker=True)
    assert "safety_checker" in [stage.stage for stage in render.engine.describe().stages]
    about = render.engine.describe()
    assert (about.engine, about.device, about.variant) == ("coreai", "reference", "coreai")


@pytest.fixture
def model(library: Library, tmp_path: Path) -> Path:
    return Path(shutil.copytree(library.converted("tiny-coreai"), tmp_path / "model"))


def render(model: Path) -> None:
    Renderer(coreml_engine(model, model, engine="coreai"))()


def vouch_for(model: Path, stage: str, **changes: object) -> None:
    """Has the manifest say of a stage's asset what it is now, so that only its content is wrong."""
    said = manifest.read(model)
    info = said.stages[stage].packages[0]
    opened = open_asset(model / info.file)
    true = {"size_bytes": opened.size, "sha256": opened.sha256(), **changes}
    changed = said.stages[stage].model_copy(update={"packages": (info.model_copy(update=true),)})
    manifest.save(said.model_copy(update={"stages": {**said.stages, stage: changed}}), model)


def test_a_truncated_program_is_refused(model: Path) -> None:
    program = model / "Unet.aimodel" / "main.mlirb"
    program.write_bytes(program.read_bytes()[:-100])
    with pytest.raises(ModelLoadError, match=r"Unet\.aimodel holds \d+ bytes, not \d+"):
        render(model)
    vouch_for(model, "unet")
    with pytest.raises(ModelLoadError, match=r"Unet\.aimodel is damaged or not complete: its program cannot be read"):
        render(model)


def test_a_wrong_function_is_refused(model: Path) -> None:
    vouch_for(model, "unet", functions=("main", "main_64x64"))
    with pytest.raises(ModelLoadError, match=r"Unet\.aimodel has no function main_64x64\..* It has main"):
        render(model)


def test_an_asset_without_main_is_refused(model: Path) -> None:
    asset = model / "VAEDecoder.aimodel"
    shutil.rmtree(asset)
    save(asset, Affine(), {"other": examples(3)}, ("x", "scale"), ("y", "mean"))
    vouch_for(model, "vae_decoder")
    with pytest.raises(ModelLoadError, match=r"VAEDecoder\.aimodel has no function main\..* It has other"):
        render(model)


def test_inputs_that_do_not_fit_are_refused(model: Path) -> None:
    asset = model / "VAEDecoder.aimodel"
    shutil.rmtree(asset)
    save(asset, Affine(), {"main": examples(3)}, ("x", "scale"), ("y", "mean"))
    vouch_for(model, "vae_decoder")
    with pytest.raises(ModelLoadError, match=r"not what its manifest says: its inputs are scale, x, not z"):
        render(model)


def test_an_asset_of_another_size_is_refused(model: Path, library: Library) -> None:
    shutil.rmtree(model / "Unet.aimodel")
    shutil.copytree(library.converted("xl-coreai_pictures") / "Unet.aimodel", model / "Unet.aimodel")
    vouch_for(model, "unet")
    with pytest.raises(ModelLoadError, match=r"Unet\.aimodel is not what its manifest says: its inputs are"):
        render(model)

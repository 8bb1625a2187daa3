"""Bundles that Apple's `coreai.diffusion.export` writes, taken into the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.coreml.conftest import coreml_engine
from tests.engine.conftest import Renderer

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import installed_models
from renderkiln.schema.errors import BadInputError, ModelLoadError, UnsupportedModelError
from renderkiln.worker.models.adding import Addition, _with_original, add
from renderkiln.worker.models.layout import variants
from renderkiln.worker.runtimes import manifest
from renderkiln.worker.runtimes.coreai.bundle import read_bundle

from .conftest import Library

pytestmark = pytest.mark.timeout(600)
SAID = {
    "metadata_version": "0.2",
    "kind": "diffusion",
    "name": "stable-diffusion-v1-5",
    "diffusion": {"type": "stable-diffusion", "prediction_type": "epsilon", "image_size": 32},
    "source": {"model_definition": "torch", "hf_model_id": "owner/name"},
    "compression": None,
}


@pytest.fixture
def bundle(library: Library, tmp_path: Path) -> Path:
    """As Apple's exporter leaves it: four assets, a tokenizer and metadata.json; no configs, no manifest of ours."""
    made, folder = library.converted("tiny-coreai"), tmp_path / "exported"
    assets = {"text_encoder": "TextEncoder", "unet": "Unet", "vae_decoder": "VAEDecoder", "vae_encoder": "VAEEncoder"}
    for name in assets.values():
        shutil.copytree(made / f"{name}.aimodel", folder / f"{name}.aimodel")
    shutil.copytree(made / "tokenizer", folder / "tokenizer")
    said = {**SAID, "assets": {stage: f"{name}.aimodel" for stage, name in assets.items()}}
    (folder / "metadata.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
def test_a_bundle_is_taken_in_and_rendered(bundle: Path, data: DataFolder, library: Library, link: bool) -> None:
    folder = add(Addition(bundle, name="exported", link=link, original=str(library.torch("tiny"))), data)
    assert set(variants(folder)) == {"coreai"}
    said = manifest.load(variants(folder)["coreai"], digests=True)
    assert (said.variant, said.sizes) == ("coreai", ((32, 32),))
    unet = said.stages["unet"]
    assert (unet.bits, unet.attention, unet.packages[0].functions) == (32, None, ("main",))
    [ours] = Renderer(coreml_engine(folder, data.root, engine="coreai"))(seed=3)
    [same] = Renderer(coreml_engine(library.converted("tiny-coreai"), data.root, engine="coreai"))(seed=3)
    assert ours.rgb == same.rgb


def test_it_says_itself_what_it_was_made_of(bundle: Path) -> None:
    names = [path.relative_to(bundle).as_posix() for path in bundle.rglob("*")]
    assert _with_original(Addition(bundle), bundle, names).original == "owner/name"
    assert _with_original(Addition(bundle, original="other/name"), bundle, names).original == "other/name"
    assert _with_original(Addition(bundle), bundle, [*names, "model_index.json"]).original is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"diffusion": {"type": "stable-diffusion-3"}}, UnsupportedModelError, "bundle of a stable-diffusion-3 model"),
        ({"diffusion": {"type": "flux2"}}, UnsupportedModelError, "flux2"),
        ({"diffusion": {}}, ModelLoadError, "does not say what type"),
        ({"kind": "llm", "source": {}}, BadInputError, "--original"),
        ({"source": "me"}, BadInputError, "--original"),
    ],
)
def test_what_is_no_bundle_of_ours_is_said(
    bundle: Path, data: DataFolder, change: dict[str, object], error: type[Exception], message: str
) -> None:
    (bundle / "metadata.json").write_text(json.dumps({**SAID, **change}))
    with pytest.raises(error, match=message):
        add(Addition(bundle, name="mine"), data)
    assert [model.name for model in installed_models(data) if not model.packaged] == []


def test_a_damaged_asset_is_refused_and_leaves_nothing(bundle: Path, data: DataFolder, library: Library) -> None:
    program = bundle / "Unet.aimodel" / "main.mlirb"
    with program.open("r+b") as file:
        file.seek(-50, 2)
        file.write(b"\0" * 50)
    with pytest.raises(ModelLoadError, match=r"Unet\.aimodel is damaged or not complete: its program does not fit"):
        add(Addition(bundle, name="mine", original=str(library.torch("tiny"))), data)
    shutil.rmtree(bundle / "Unet.aimodel")
    with pytest.raises(ModelLoadError, match="no unet"):
        add(Addition(bundle, name="mine", original=str(library.torch("tiny"))), data)
    assert [model.name for model in installed_models(data) if not model.packaged] == []


def test_other_metadata_is_no_bundle(tmp_path: Path) -> None:
    assert read_bundle(tmp_path) is None
    (tmp_path / "metadata.json").write_text("[1]")
    assert read_bundle(tmp_path) is None

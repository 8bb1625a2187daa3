"""Folders that say what is not so are refused before anything is rendered, with what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import pytest
from tests.convert.conftest import plan_of
from tests.engine.conftest import Renderer

from renderkiln.home.folder import DataFolder
from renderkiln.schema import errors
from renderkiln.worker.engine.making import EngineChoice, make_engine
from renderkiln.worker.models.choosing import Wishes

from .conftest import Library, coreml_engine

pytestmark = pytest.mark.timeout(600)
Change = Callable[[dict[str, Any], Path], None]


def unet_input(manifest: dict[str, Any], name: str) -> Any:
    (package,) = manifest["stages"]["unet"]["packages"]
    return next(each for each in package["inputs"] if each["name"] == name)


def another_shape(manifest: dict[str, Any], _: Path) -> None:
    unet_input(manifest, "encoder_hidden_states")["shapes"] = [[2, 64, 1, 77]]


def another_dtype(manifest: dict[str, Any], _: Path) -> None:
    unet_input(manifest, "timestep")["dtype"] = "float32"


def another_size(manifest: dict[str, Any], _: Path) -> None:
    manifest["sizes"] = [[512, 512]]


def no_unet(manifest: dict[str, Any], _: Path) -> None:
    del manifest["stages"]["unet"]


def an_input_too_many(manifest: dict[str, Any], _: Path) -> None:
    inputs = manifest["stages"]["unet"]["packages"][0]["inputs"]
    inputs.append({"name": "hidden_states_of_chunk_1", "dtype": "float16", "shapes": [[2, 4]]})


def another_output(manifest: dict[str, Any], _: Path) -> None:
    manifest["stages"]["vae_decoder"]["packages"][0]["outputs"][0]["name"] = "picture"


def no_package(manifest: dict[str, Any], folder: Path) -> None:
    shutil.rmtree(folder / manifest["stages"]["unet"]["packages"][0]["file"])


def cut_off_weights(manifest: dict[str, Any], folder: Path) -> None:
    package = folder / manifest["stages"]["unet"]["packages"][0]["file"]
    (weights,) = package.rglob("weight.bin")
    weights.write_bytes(weights.read_bytes()[:-1000])


def an_op_that_is_not_known(manifest: dict[str, Any], folder: Path) -> None:
    package = folder / manifest["stages"]["unet"]["packages"][0]["file"]
    (path,) = package.rglob("model.mlmodel")
    spec = ct.utils.load_spec(str(path))
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            next(each for each in block.operations if each.type == "conv").type = "hologram"
    data = spec.SerializeToString()
    manifest["stages"]["unet"]["packages"][0]["size_bytes"] += len(data) - path.stat().st_size
    path.write_bytes(data)


def a_file_elsewhere(manifest: dict[str, Any], _: Path) -> None:
    manifest["stages"]["unet"]["packages"][0]["file"] = "../../etc.mlpackage"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_shape, r"encoder_hidden_states is \(2, 32, 1, 77\), not \(2, 64, 1, 77\)"),
        (another_dtype, "timestep is float16, not float32"),
        (another_size, "said to render 512x512; its unet takes 32x32"),
        (no_unet, "has no unet"),
        (
            an_input_too_many,
            "takes hidden_states_of_chunk_1, which nothing here gives it; is one of its chunks missing",
        ),
        (another_output, "vae_decoder .* gives no image; it gives picture"),
        (no_package, "does not exist"),
        (cut_off_weights, "holds .* bytes, not"),
        (an_op_that_is_not_known, "hologram"),
        (a_file_elsewhere, "plain name"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_a_folder_that_lies_is_refused(library: Library, tmp_path: Path, change: Change, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(library.converted("tiny"), folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(manifest, folder)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(errors.ModelLoadError, match=message):
        Renderer(coreml_engine(folder, tmp_path))()


def test_the_second_chunk_alone_is_refused(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(library.converted("tiny-one"), folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["stages"]["unet"]["packages"][0]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(errors.ModelLoadError, match="nothing here gives it; is one of its chunks missing"):
        Renderer(coreml_engine(folder, tmp_path))()


def test_chunks_that_do_not_fit_together_are_refused(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(library.converted("tiny-one"), folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    first, second = manifest["stages"]["unet"]["packages"]
    shared = next(each for each in second["inputs"] if each["name"] in {out["name"] for out in first["outputs"]})
    shared["dtype"] = "int32"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(errors.ModelLoadError, match=f"{shared['name']} is .* in one chunk and int32 in the next"):
        Renderer(coreml_engine(folder, tmp_path))()


def test_a_model_that_was_never_converted_says_how_to(library: Library, tmp_path: Path) -> None:
    with pytest.raises(errors.ModelLoadError, match="renderkiln convert"):
        Renderer(coreml_engine(library.torch("tiny"), tmp_path))()


def test_a_variant_that_is_not_there_names_those_that_are(library: Library, tmp_path: Path) -> None:
    engine = coreml_engine(library.converted("tiny"), tmp_path, variant="split-einsum")
    with pytest.raises(errors.ModelLoadError, match="no variant split-einsum; it has original"):
        Renderer(engine)()


@pytest.mark.parametrize(("unit", "message"), [("cpu_and_ne", "needs macOS"), ("tpu", "no compute unit 'tpu'")])
def test_a_unit_that_is_not_here_is_refused_at_start(library: Library, tmp_path: Path, unit: str, message: str) -> None:
    with pytest.raises(errors.SettingsError, match=message):
        coreml_engine(library.torch("tiny"), tmp_path, compute_unit=unit)


def test_a_converted_model_is_not_called_incomplete_by_those_who_want_torchs_weights(
    library: Library, tmp_path: Path
) -> None:
    folder = library.converted("tiny-core")
    engine = make_engine(EngineChoice(Wishes(engine="torch")), lambda _name, _revision: folder, DataFolder(tmp_path))
    with pytest.raises(errors.ModelLoadError, match="tiny is converted, and has no weights for torch"):
        Renderer(engine)()
    with pytest.raises(errors.UnsupportedModelError, match="converted already"):
        plan_of(folder)

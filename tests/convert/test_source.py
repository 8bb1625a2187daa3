"""Finding the model: what can be converted, what is refused, and with which words."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from renderkiln.home.folder import DataFolder
from renderkiln.schema.errors import (
    BadInputError,
    HubUnavailableError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from renderkiln.worker.convert.facts import ModelFacts
from renderkiln.worker.convert.options import make_options
from renderkiln.worker.convert.source import Source, find_source, read_facts
from renderkiln.worker.convert.weights import fingerprint


def facts(source: Source, **options: Any) -> ModelFacts:
    return read_facts(source, make_options(**options))


def copy(model: Path, target: Path) -> Path:
    shutil.copytree(model, target)
    return target


def test_an_installed_model_is_found_by_its_name(data: DataFolder) -> None:
    source = find_source("shapes", data)
    assert (source.name, facts(source).family) == ("shapes", "sd")


def test_a_folder_is_named_by_its_last_part(tiny: Path, data: DataFolder) -> None:
    source = find_source(f"{tiny}/xl/", data)
    assert (source.name, facts(source).family) == ("xl", "sdxl")


@pytest.mark.parametrize("name", ["model.ckpt", "folder/model.pt", "model.bin", "MODEL.CKPT"])
def test_a_pickle_is_refused_unread_whether_it_is_there_or_not(tmp_path: Path, data: DataFolder, name: str) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="pickle"):
            find_source(str(path), data)
        path.write_bytes(pickle.dumps(Trap()))
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_by_another_name_is_no_safetensors_file(tmp_path: Path, data: DataFolder) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelLoadError, match="safetensors"):
        find_source(str(path), data)


def test_a_model_with_pickles_only_is_refused(tiny: Path, tmp_path: Path, data: DataFolder) -> None:
    model = copy(tiny / "sd1", tmp_path / "model")
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="pickles only"):
        facts(find_source(str(model), data))


@pytest.mark.parametrize("cut", [1, 100_000])
def test_weights_that_are_cut_off_are_refused(tiny: Path, tmp_path: Path, data: DataFolder, cut: int) -> None:
    model = copy(tiny / "sd1", tmp_path / "model")
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ModelLoadError, match="cut off"):
        facts(find_source(str(model), data))


@pytest.mark.parametrize("pipeline", ["FluxPipeline", "StableDiffusion3Pipeline", "WanPipeline"])
def test_another_kind_of_pipeline_is_refused_by_its_name(
    tiny: Path, tmp_path: Path, data: DataFolder, pipeline: str
) -> None:
    model = copy(tiny / "sd1", tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps({**index, "_class_name": pipeline}))
    with pytest.raises(UnsupportedModelError, match=pipeline):
        facts(find_source(str(model), data))


def test_a_repository_that_cannot_be_reached_is_said_to_be(data: DataFolder, offline: Path) -> None:
    with pytest.raises(HubUnavailableError, match=r"nobody/nothing.*not in this machine's cache.*HF_HUB_OFFLINE"):
        find_source("nobody/nothing", data)


def test_a_repository_in_the_cache_needs_no_network(tiny: Path, data: DataFolder, offline: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = offline / "models--some--model"
    copy(tiny / "sd1", folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    source = find_source("some/model", data)
    assert (source.name, source.revision) == ("some/model", commit)
    assert facts(source).weights.keys() == {"text_encoder", "unet", "vae", "safety_checker"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "shape"}, "Did you mean 'shapes'"),
        ({"model": "shapes", "revision": "main"}, "no revision is known"),
        ({"model": "shapes", "config": Path("x")}, "--config describes a checkpoint file"),
        ({"model": "shapes", "controlnets": ("nowhere",)}, "--controlnet nowhere"),
        ({"model": "shapes", "controlnets": ("a.ckpt",)}, "pickle"),
        ({"model": "shapes", "custom_vae": "nowhere"}, "--custom-vae nowhere"),
    ],
)
def test_what_is_not_there_is_said(data: DataFolder, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        find_source(arguments.pop("model"), data, **arguments)


def test_a_folder_that_is_no_model_is_said_to_be_none(tmp_path: Path, data: DataFolder) -> None:
    with pytest.raises(ModelNotFoundError, match="model_index"):
        find_source(str(tmp_path), data)


def test_something_else_than_a_controlnet_is_refused(tiny: Path, data: DataFolder) -> None:
    source = find_source("shapes", data, controlnets=(str(tiny / "sd1" / "unet"),))
    with pytest.raises(UnsupportedModelError, match="UNet2DConditionModel"):
        facts(source)


def test_a_projection_is_one_linear_layer_in_safetensors(tmp_path: Path, data: DataFolder) -> None:
    path = tmp_path / "p.safetensors"
    save_file({"proj.weight": torch.ones(128, 512), "proj.bias": torch.ones(128)}, path)
    projection = facts(find_source("shapes", data, projection=path)).projection
    assert projection is not None
    assert (projection.inputs, projection.outputs) == (512, 128)
    save_file({"a.weight": torch.ones(128, 512), "b.weight": torch.ones(128, 128)}, path)
    with pytest.raises(BadInputError, match="one linear layer"):
        facts(find_source("shapes", data, projection=path))
    with pytest.raises(UnsupportedModelError, match="save_file"):
        facts(find_source("shapes", data, projection=tmp_path / "p.pt"))


def test_a_fingerprint_changes_with_the_file_and_knows_the_hubs_names(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(4)}, path)
    first = fingerprint([path])
    assert fingerprint([path]) == first
    save_file({"a": torch.zeros(5)}, path)
    assert fingerprint([path]) != first
    blob = tmp_path / ("ab" * 32)
    path.rename(blob)
    path.symlink_to(blob)
    named = fingerprint([path])
    blob.write_bytes(b"not even read")
    assert fingerprint([path]) == named

"""ControlNets in the model store: which folders are some, and which only look like it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from renderkiln.home.controlnets import find_controlnet, installed_controlnets
from renderkiln.home.folder import DataFolder
from renderkiln.schema.errors import ModelNotFoundError

CONFIG = json.dumps({"_class_name": "ControlNetModel"})


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path)


def put(folder: DataFolder, name: str, config: str | bytes = CONFIG) -> Path:
    path = folder.models / name
    path.mkdir(parents=True)
    (path / "config.json").write_bytes(config.encode() if isinstance(config, str) else config)
    return path


def test_folders_of_controlnets_are_found_by_name(folder: DataFolder) -> None:
    assert installed_controlnets(folder) == []
    canny, depth = put(folder, "canny"), put(folder, "owner/depth")
    assert installed_controlnets(folder) == ["canny", "owner/depth"]
    assert (find_controlnet(folder, "canny"), find_controlnet(folder, "owner/depth")) == (canny, depth)
    with pytest.raises(ModelNotFoundError, match=r"ControlNet 'cany' is not on this machine\. Did you mean 'canny'"):
        find_controlnet(folder, "cany")


@pytest.mark.parametrize("name", ["../canny", "/canny", "canny/..", "", "."])
def test_a_name_is_never_a_path(folder: DataFolder, name: str) -> None:
    put(folder, "canny")
    (folder.models.parent / "canny").mkdir()
    (folder.models.parent / "canny" / "config.json").write_text(CONFIG)
    with pytest.raises(ModelNotFoundError):
        find_controlnet(folder, name)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "{",
        "[]",
        "5",
        "{}",
        '{"_class_name": "UNet2DConditionModel"}',
        '{"_class_name": ["ControlNetModel"]}',
        b"\xff\xfe",
        "[" * 100_000,
        CONFIG + " " * (1 << 20),
    ],
    ids=lambda config: repr(config)[:30],
)
def test_what_is_no_controlnet_is_passed_over(folder: DataFolder, config: str | bytes) -> None:
    put(folder, "thing", config)
    put(folder, "canny")
    assert installed_controlnets(folder) == ["canny"]


def test_parts_of_models_and_half_pulled_folders_are_none(folder: DataFolder) -> None:
    put(folder, "sd15/controlnet")
    (folder.models / "sd15" / "model_index.json").write_text("{}")
    put(folder, ".pulling/canny")
    (folder.models / "loose").mkdir()
    (folder.models / "loose" / "config.json").mkdir()
    assert installed_controlnets(folder) == []

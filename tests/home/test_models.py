"""Which models are on a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model, installed_models
from renderkiln.home.origin import Origin
from renderkiln.schema.errors import ModelLoadError, ModelNotFoundError, RevisionNotFoundError


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path)


def put(folder: DataFolder, name: str, index: str = '{"_class_name": "StableDiffusionPipeline"}') -> Path:
    path = folder.models / name
    path.mkdir(parents=True)
    (path / "model_index.json").write_text(index)
    (path / "weights.bin").write_bytes(b"x" * 1000)
    return path


def test_models_are_found_by_name_and_by_owner_and_name(folder: DataFolder) -> None:
    plain, owned = put(folder, "sd15"), put(folder, "owner/sdxl")
    assert find_model(folder, "sd15") == plain
    assert find_model(folder, "owner/sdxl") == owned
    found = {model.name: model for model in installed_models(folder)}
    assert {"sd15", "owner/sdxl"} <= set(found)
    assert (found["sd15"].pipeline, found["sd15"].packaged) == ("StableDiffusionPipeline", False)
    assert found["sd15"].size_bytes > 1000


def test_a_model_of_ones_own_hides_the_packaged_one_of_that_name(folder: DataFolder) -> None:
    mine = put(folder, "shapes")
    assert find_model(folder, "shapes") == mine
    assert [model.packaged for model in installed_models(folder) if model.name == "shapes"] == [False]


@pytest.mark.parametrize("index", ["", "[]", "{", json.dumps({"no": "class"})])
def test_a_folder_whose_index_cannot_be_read_is_listed_as_what_it_is(folder: DataFolder, index: str) -> None:
    put(folder, "broken", index)
    (found,) = [model for model in installed_models(folder) if model.name == "broken"]
    assert found.pipeline in ("unreadable", "unknown")


def test_a_model_that_is_not_there_is_said_with_the_nearest_name_and_what_to_do(folder: DataFolder) -> None:
    put(folder, "dreamshaper-8")
    with pytest.raises(ModelNotFoundError, match="Did you mean 'dreamshaper-8'") as caught:
        find_model(folder, "dreamshaper8")
    assert "models list" in str(caught.value)
    assert str(folder.models / "dreamshaper8") in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_revision_is_the_commit_or_the_branch_that_it_came_as(folder: DataFolder) -> None:
    path = put(folder, "owner/sd")
    commit = "0123456789abcdef" * 2 + "01234567"
    (path / "origin.json").write_text(Origin(repository="owner/sd", revision=commit, asked_for="v2").model_dump_json())
    for revision in (None, commit, commit[:7], "v2"):
        assert find_model(folder, "owner/sd", revision) == path
    for revision in ("main", commit[:6], "f" * 40):
        with pytest.raises(RevisionNotFoundError, match=f"here in revision {commit}"):
            find_model(folder, "owner/sd", revision)
    assert [model.revision for model in installed_models(folder) if model.name == "owner/sd"] == [commit]


def test_a_converted_folder_has_its_revision_in_its_manifest(folder: DataFolder) -> None:
    path = put(folder, "converted")
    (path / "manifest.json").write_text('{"revision": "v1.5"}')
    assert find_model(folder, "converted", "v1.5") == path


def test_of_a_plain_folder_no_revision_is_known(folder: DataFolder) -> None:
    put(folder, "plain")
    with pytest.raises(RevisionNotFoundError, match="no revision is known"):
        find_model(folder, "plain", "main")


@pytest.mark.parametrize("text", ["{", "[]", '{"revision": 3}', '{"schema_version": 2}', '{"files": {"a": {}}}'])
def test_a_damaged_record_of_the_origin_is_said_and_still_listed(folder: DataFolder, text: str) -> None:
    (put(folder, "damaged") / "origin.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"origin\.json"):
        find_model(folder, "damaged", "main")
    assert "damaged" in [model.name for model in installed_models(folder)]


def test_what_is_hidden_is_no_model(folder: DataFolder) -> None:
    put(folder, ".pulling/half")
    assert [model.name for model in installed_models(folder) if not model.packaged] == []

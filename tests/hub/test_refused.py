"""What cannot be pulled: who may not, what is not there, what is not complete, what would lead astray."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from renderkiln.home.folder import DataFolder
from renderkiln.schema.errors import (
    BadInputError,
    HubUnavailableError,
    ModelAccessError,
    ModelFetchError,
    ModelGatedError,
    ModelLoadError,
    ModelNotFoundError,
    UnsupportedModelError,
    WorkerUnavailableError,
)
from renderkiln.worker.models import store
from renderkiln.worker.models.layout import variants
from renderkiln.worker.models.pull import Request, plan_pull, run_pull

from . import repositories
from .conftest import Pull, own
from .repositories import ORIGINAL, PALETTIZED
from .server import HubServer

WEIGHTS = "original/compiled/Unet.mlmodelc/weights/weight.bin"


def test_the_token_goes_to_the_hub_and_not_to_its_storage(
    hub: HubServer, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories[PALETTIZED].token = "hf_secret"
    with pytest.raises(ModelNotFoundError, match="private and you are not logged in"):
        pull()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ModelNotFoundError, match="private and your token may not see it"):
        pull()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.seen.clear()
    assert list(variants(pull(variant="original"))) == ["original"]
    assert {each.authorization for each in hub.seen if "/stored/" in each.path} == {None}
    assert {each.authorization for each in hub.seen if "/stored/" not in each.path} == {"hf_secret"}


def test_a_gated_repository_says_where_to_agree(hub: HubServer, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[PALETTIZED].gate = "hf_agreed"
    with pytest.raises(ModelGatedError, match=rf"{hub.url}/{PALETTIZED}, then log in"):
        pull()
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ModelGatedError, match=rf"{PALETTIZED}$"):
        pull()


def test_a_token_that_is_not_valid_is_said(hub: HubServer, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.refuses_all = (401, "Invalid credentials in Authorization header")
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(ModelAccessError, match="token is not valid"):
        pull()


def test_no_network_and_offline_are_said(hub: HubServer, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE is set") as caught:
        pull()
    assert caught.value.exit_code == 3
    assert hub.seen == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnavailableError, match="cannot be reached"):
        pull()


@pytest.mark.parametrize("name", ["nobody/nothing", "two/many/parts", "one", "../up", "a b/c"])
def test_what_is_not_there_or_no_name_is_said(pull: Pull, name: str) -> None:
    with pytest.raises(BadInputError):
        pull(name)


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "original/compiled/Unet.mlmodelc/../../../../evil", "a\\b"]
)
def test_a_files_name_does_not_lead_out_of_the_folder(
    hub: HubServer, pull: Pull, data: DataFolder, tmp_path: Path, name: str
) -> None:
    bad = f"original/compiled/Unet.mlmodelc/{name}"
    hub.add(PALETTIZED, {**repositories.apples(), bad: b"evil"})
    with pytest.raises(ModelFetchError, match="no such name is written here"):
        pull(variant="original")
    assert list(tmp_path.rglob("*evil*")) == []
    assert own(data) == []


LIES = {
    "a stage is missing": (("TextEncoder", "Unet"), "no vae_decoder"),
    "no UNet at all": (("TextEncoder", "VAEDecoder"), "no unet"),
    "chunk 2 without chunk 1": (("TextEncoder", "UnetChunk2", "VAEDecoder"), "chunk 2 of unet .* without chunk 1"),
    "chunk 1 without chunk 2": (("TextEncoder", "UnetChunk1", "VAEDecoder"), "chunk 1 of unet .* without chunk 2"),
}


@pytest.mark.parametrize(("stages", "message"), LIES.values(), ids=LIES)
def test_a_repository_that_is_not_complete_is_refused(
    hub: HubServer, pull: Pull, data: DataFolder, stages: tuple[str, ...], message: str
) -> None:
    hub.add(PALETTIZED, repositories.apples(("original",), original=repositories.compiled_folder(stages)))
    with pytest.raises(ModelLoadError, match=message):
        pull()
    assert own(data) == []
    assert list((data.models / ".coming").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputSchema": []}, "does not say what it takes"),
        ({"inputSchema": "?"}, "does not describe"),
        ({"inputSchema": [{"name": "sample", "type": "Image"}]}, "not an array"),
        (
            {"inputSchema": [{"name": "sample", "type": "MultiArray", "dataType": "Float16", "shape": "[0]"}]},
            "no shape",
        ),
        ({"outputSchema": [{"name": "x", "type": "MultiArray", "dataType": "Float16", "shape": "[]"}]}, "noise_pred"),
    ],
)
def test_a_compiled_model_that_says_nonsense_of_itself_is_refused(
    hub: HubServer, pull: Pull, changes: dict[str, object], message: str
) -> None:
    unet = {f"Unet.mlmodelc/{name}": data for name, data in repositories.compiled("Unet", **changes).items()}
    hub.add(PALETTIZED, repositories.apples(("original",), original={**repositories.compiled_folder(), **unet}))
    with pytest.raises(ModelLoadError, match=message):
        pull()


def test_a_compiled_model_without_metadata_is_refused(hub: HubServer, pull: Pull) -> None:
    files = repositories.compiled_folder()
    del files["Unet.mlmodelc/metadata.json"]
    hub.add(PALETTIZED, repositories.apples(("original",), original=files))
    with pytest.raises(ModelLoadError, match=r"no metadata\.json"):
        pull()


def test_what_cannot_be_had_is_said_before_anything_is_fetched(hub: HubServer, pull: Pull) -> None:
    hub.add("owner/core", repositories.apples())
    with pytest.raises(BadInputError, match="--original"):
        pull("owner/core")
    with pytest.raises(BadInputError, match=r"--variant split-einsum.*has original, split-einsum-v2"):
        pull(variant="split-einsum")
    with pytest.raises(BadInputError, match="say --format compiled"):
        pull(form="packages")
    with pytest.raises(ModelNotFoundError, match="--original takes another"):
        pull("owner/core", original="nobody/nothing")
    with pytest.raises(BadInputError, match="no model in diffusers' layout"):
        pull("owner/core", original=PALETTIZED)
    hub.add("owner/pickles", {**repositories.small(), "unet/diffusion_pytorch_model.bin": b"pickle"})
    with pytest.raises(UnsupportedModelError, match="pickles"):
        pull("owner/pickles")
    hub.add("owner/readme", {"README.md": b"#"})
    with pytest.raises(UnsupportedModelError, match=r"no model_index\.json"):
        pull("owner/readme")
    with pytest.raises(BadInputError, match="no variants"):
        pull(ORIGINAL, variant="original")
    assert hub.fetched() == []


def test_a_name_that_is_taken_or_lies_in_a_model_is_refused(hub: HubServer, pull: Pull, data: DataFolder) -> None:
    pull(ORIGINAL, name="mine")
    for name in ("mine", "mine/inner"):
        with pytest.raises(BadInputError, match="mine"):
            pull(name=name)
    pull(ORIGINAL)
    with pytest.raises(BadInputError, match="owner of other models"):
        pull(name=ORIGINAL.split("/")[0])


def test_one_pull_at_a_time(hub: HubServer, data: DataFolder) -> None:
    plan = plan_pull(Request(PALETTIZED, form="compiled"), data)
    assert plan is not None
    with store.coming(data, plan.key), pytest.raises(BadInputError, match="another renderkiln"):
        run_pull(plan, data, lambda *_: None, lambda _: None)


def test_a_manifest_that_lies_of_its_packages_is_refused(hub: HubServer, pull: Pull, data: DataFolder) -> None:
    files = repositories.files_of(pull(variant="original", name="made"))
    manifest = json.loads(files["original/manifest.json"])
    manifest["stages"]["vae_decoder"]["packages"][0]["inputs"][0]["shapes"] = [[1, 4, 16, 16]]
    hub.add("owner/lying", {**files, "original/manifest.json": json.dumps(manifest).encode()})
    with pytest.raises(ModelLoadError, match=r"its input z is \(1, 4, 8, 8\), not \(1, 4, 16, 16\)"):
        pull("owner/lying")
    hub.add("owner/changed", {**files, "original/Unet.mlmodelc/weights/weight.bin": bytes(5000)})
    with pytest.raises(ModelLoadError, match="SHA-256 is another"):
        pull("owner/changed")
    assert own(data) == ["made"]


def test_without_coremltools_packages_are_refused_before_they_are_fetched(
    hub: HubServer, pull: Pull, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "coremltools" else find(name))
    hub.add("owner/packages", {"original/packages/a_unet.mlpackage/Manifest.json": b"{}"})
    with pytest.raises(WorkerUnavailableError, match=r"needs coremltools.*\[worker,coreml\]"):
        pull("owner/packages", form="packages", original=ORIGINAL)
    assert hub.fetched() == []
    assert pull(variant="original").is_dir()

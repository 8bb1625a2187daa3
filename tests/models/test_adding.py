"""Taking folders of this machine into the store, as copies and as links."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.hub import repositories

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model, installed_models
from renderkiln.home.origin import Origin
from renderkiln.schema.errors import BadInputError, CorruptFileError, DiskFullError, ModelLoadError, RenderkilnError
from renderkiln.worker.models import store
from renderkiln.worker.models.adding import Addition, add
from renderkiln.worker.models.layout import variants
from renderkiln.worker.runtimes import manifest as manifests


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


@pytest.fixture
def diffusers(tmp_path: Path) -> Path:
    return repositories.write(repositories.diffusers(), tmp_path / "sd15")


@pytest.fixture
def apples(tmp_path: Path) -> Path:
    return repositories.write(repositories.apples(), tmp_path / "apples")


def own(data: DataFolder) -> list[str]:
    return [model.name for model in installed_models(data) if not model.packaged]


@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
def test_every_variant_of_apples_is_taken_in_with_the_originals_small_files(
    data: DataFolder, apples: Path, diffusers: Path, link: bool
) -> None:
    folder = add(Addition(apples, name="mine", original=str(diffusers), link=link), data)
    assert find_model(data, "mine") == folder
    assert set(variants(folder)) == {"original", "split-einsum-v2"}
    for variant in variants(folder).values():
        manifests.load(variant, digests=True)
        assert all(path.is_symlink() == link for path in variant.glob("*.mlmodelc"))
    assert not list(folder.rglob("*.safetensors"))
    assert store.verify(folder, lambda _: None) == []
    store.remove(data, "mine")
    assert own(data) == []
    assert repositories.files_of(apples) == repositories.apples()


@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
def test_a_folder_that_convert_wrote_is_taken_in(data: DataFolder, apples: Path, diffusers: Path, link: bool) -> None:
    made = add(Addition(apples, name="made", original=str(diffusers), variant="original"), data)
    converted = made.parent.parent / "converted"
    shutil.copytree(made / "original", converted)
    for name, content in repositories.small().items():
        repositories.write({name: content}, converted)
    (converted / "notes.bin").write_bytes(b"not ours")
    for beside in ("self-test.png", "metadata.json"):
        (converted / beside).write_bytes(b"{}")
    manifest = json.loads((converted / "manifest.json").read_text())
    (converted / "manifest.json").write_text(json.dumps({**manifest, "revision": "v1"}))
    folder = add(Addition(converted, link=link), data)
    assert variants(folder) == {"original": folder}
    assert find_model(data, "converted", "v1") == folder
    assert (folder / "notes.bin").exists() == link
    assert (folder / "self-test.png").exists(), "a worker compares its first picture with it"
    assert (folder / "metadata.json").exists(), "which makes it a bundle for Apple's pipeline"
    assert store.verify(folder, lambda _: None) == []
    store.remove(data, "converted")
    assert (converted / "notes.bin").exists()


@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
def test_a_diffusers_folder_is_taken_in_without_its_pickles(data: DataFolder, diffusers: Path, link: bool) -> None:
    folder = add(Addition(diffusers, link=link), data)
    assert (find_model(data, "sd15"), folder.is_symlink()) == (folder, link)
    assert variants(folder) == {}
    if not link:
        names = {path.name for path in folder.rglob("*") if path.is_file()}
        assert {name for name in names if not name.endswith((".json", ".txt"))} == {
            "model.fp16.safetensors",
            "diffusion_pytorch_model.fp16.safetensors",
        }
        assert store.verify(folder, lambda _: None) == []
        (folder / "unet" / "config.json").write_text("{}")
        with pytest.raises(CorruptFileError, match=r"unet/config\.json is not what it was"):
            store.verify(folder, lambda _: None)
    else:
        assert store.verify(folder, lambda _: None) == [store.NOTHING_KNOWN]


@pytest.mark.parametrize("inner", ["split_einsum_v2", "split_einsum_v2/compiled"])
def test_the_variant_is_read_from_the_folders_above(
    data: DataFolder, apples: Path, diffusers: Path, inner: str
) -> None:
    with pytest.raises(BadInputError, match="--name"):
        add(Addition(apples / inner, original=str(diffusers)), data)
    folder = add(Addition(apples / inner, name="mine", original=str(diffusers)), data)
    assert list(variants(folder)) == ["split-einsum-v2"]


def test_a_folder_that_does_not_say_its_variant_is_told_it(data: DataFolder, tmp_path: Path, diffusers: Path) -> None:
    plain = repositories.write(repositories.compiled_folder(), tmp_path / "plain")
    with pytest.raises(BadInputError, match="say --variant"):
        add(Addition(plain, original=str(diffusers)), data)
    folder = add(Addition(plain, original=str(diffusers), variant="split-einsum"), data)
    assert manifests.load(folder / "split-einsum").variant == "split-einsum"


def test_a_record_of_where_it_came_from_comes_with_it(data: DataFolder, diffusers: Path) -> None:
    store.write_origin(Origin(repository="owner/sd15", revision="f" * 40, asked_for="main"), diffusers)
    folder = add(Addition(diffusers), data)
    assert find_model(data, "sd15", "f" * 40) == folder


def test_what_cannot_be_added_is_said_and_leaves_nothing(
    data: DataFolder, tmp_path: Path, apples: Path, diffusers: Path
) -> None:
    (tmp_path / "empty").mkdir()
    half = repositories.write(
        repositories.compiled_folder(("TextEncoder", "UnetChunk2")), tmp_path / "half" / "original"
    )
    broken = repositories.write(repositories.small(), tmp_path / "broken")
    cases: list[tuple[Addition, type[RenderkilnError], str]] = [
        (Addition(tmp_path / "nowhere"), BadInputError, "is no folder"),
        (Addition(tmp_path / "empty"), BadInputError, r"no model_index\.json"),
        (Addition(apples), BadInputError, "say with --original"),
        (Addition(apples, original=str(tmp_path / "empty")), BadInputError, "--original"),
        (Addition(apples, original=str(diffusers), variant="split-einsum"), BadInputError, "does not have it"),
        (Addition(half, name="half", original=str(diffusers)), ModelLoadError, "chunk 2 of unet .* without chunk 1"),
        (Addition(broken), ModelLoadError, "text_encoder"),
        (Addition(diffusers, name="../out"), BadInputError, "no name"),
        (Addition(diffusers, name="a/b/c"), BadInputError, "no name"),
        (Addition(diffusers, variant="original"), BadInputError, "--variant"),
    ]
    for addition, error, message in cases:
        with pytest.raises(error, match=message):
            add(addition, data)
    assert own(data) == []
    add(Addition(diffusers), data)
    with pytest.raises(BadInputError, match="is here already"):
        add(Addition(diffusers), data)
    with pytest.raises(BadInputError, match="lies in the store"):
        add(Addition(data.models / "sd15", name="again"), data)
    assert own(data) == ["sd15"]
    assert list((data.models / ".coming").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"shapes": [[2, 4, 16, 16]]},
            r"not what its manifest says: its input sample is \(2, 4, 8, 8\), not \(2, 4, 16, 16\)",
        ),
        ({"dtype": "float32"}, "its input sample is float16, not float32"),
        ({"name": "simple"}, "its inputs are .*sample.*, not .*simple"),
    ],
    ids=["shape", "dtype", "name"],
)
@pytest.mark.parametrize("link", [False, True], ids=["copied", "linked"])
def test_a_manifest_that_lies_of_its_packages_is_refused(
    data: DataFolder, apples: Path, diffusers: Path, change: dict[str, object], message: str, link: bool
) -> None:
    made = add(Addition(apples, name="made", original=str(diffusers)), data)
    lying = made.parent.parent / "lying"
    shutil.copytree(made, lying)
    manifest = json.loads((lying / "original" / "manifest.json").read_text())
    manifest["stages"]["unet"]["packages"][0]["inputs"][0].update(change)
    (lying / "original" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelLoadError, match=message):
        add(Addition(lying, link=link), data)
    assert own(data) == ["made"]


def test_a_copy_that_does_not_fit_is_refused(
    data: DataFolder, diffusers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DiskFullError, match="make room"):
        add(Addition(diffusers), data)
    assert own(data) == []


def test_two_variants_in_one_folder_are_told_apart_and_doubles_refused(
    data: DataFolder, apples: Path, diffusers: Path
) -> None:
    folder = add(Addition(apples, name="mine", original=str(diffusers)), data)
    shutil.copy(folder / "original" / "manifest.json", folder / "manifest.json")
    with pytest.raises(ModelLoadError, match="the variant original twice"):
        variants(folder)
    (folder / "manifest.json").unlink()
    shutil.copy(folder / "original" / "manifest.json", folder / "split-einsum-v2" / "manifest.json")
    with pytest.raises(ModelLoadError, match="its folder says split-einsum-v2"):
        variants(folder)


def test_a_missing_file_is_said_when_verifying(data: DataFolder, apples: Path, diffusers: Path) -> None:
    folder = add(Addition(apples, name="mine", original=str(diffusers)), data)
    shutil.rmtree(folder / "original" / "Unet.mlmodelc")
    with pytest.raises(CorruptFileError, match=r"original/Unet\.mlmodelc/coremldata\.bin is missing"):
        store.verify(folder, lambda _: None)

"""Pulling models with the real client of the Hub from a server that speaks its protocol."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from tests.disks import small_disk

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model
from renderkiln.home.origin import read_origin
from renderkiln.schema.errors import (
    BadInputError,
    CorruptFileError,
    DiskFullError,
    HubUnavailableError,
    ModelFetchError,
    RevisionNotFoundError,
)
from renderkiln.worker.models import machine, store
from renderkiln.worker.models.layout import Variant, variants
from renderkiln.worker.models.machine import Advice
from renderkiln.worker.models.pull import Request, plan_pull, run_pull
from renderkiln.worker.runtimes import manifest as manifests

from . import repositories
from .conftest import Pull, own
from .repositories import ORIGINAL, PALETTIZED
from .server import HubServer

WEIGHTS = "original/compiled/Unet.mlmodelc/weights/weight.bin"


def test_one_variant_of_apples_and_the_originals_small_files_are_fetched(
    hub: HubServer, pull: Pull, data: DataFolder
) -> None:
    folder = pull(variant="split-einsum-v2")
    assert find_model(data, PALETTIZED) == folder
    assert list(variants(folder)) == ["split-einsum-v2"]
    manifest = manifests.load(folder / "split-einsum-v2", digests=True)
    assert set(manifest.stages) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert (manifest.variant, manifest.sizes, manifest.stages["unet"].bits) == ("split-einsum-v2", ((64, 64),), 6)
    assert (manifest.model, manifest.revision) == (PALETTIZED, hub.repositories[PALETTIZED].commit)
    # Of Apple's repository nothing but the variant, of the original nothing but small files.
    apples = [name for name in hub.repositories[PALETTIZED].files if name.startswith("split_einsum_v2/")]
    apples = [name for name in apples if ".mlmodelc/" in name]
    assert hub.fetched() == sorted([*apples, *repositories.small()])
    assert (folder / "tokenizer" / "merges.txt").read_bytes() == repositories.small()["tokenizer/merges.txt"]
    weights = "Unet.mlmodelc/weights/weight.bin"
    served = hub.repositories[PALETTIZED].files[f"split_einsum_v2/compiled/{weights}"]
    assert (folder / "split-einsum-v2" / weights).read_bytes() == served


def test_packages_are_described_by_their_own_specs(hub: HubServer, pull: Pull, tmp_path: Path) -> None:
    from .packages import apples_packages

    hub.add("owner/packages", apples_packages(tmp_path / "made"))
    folder = pull("owner/packages", form="packages", original=ORIGINAL)
    manifest = manifests.load(folder / "original", digests=True)
    assert set(manifest.stages) == {"text_encoder", "unet", "vae_decoder"}
    (unet,) = manifest.stages["unet"].packages
    assert {each.name: (each.dtype, each.shapes) for each in unet.inputs}["sample"] == ("float16", ((2, 4, 8, 8),))
    assert manifest.sizes == ((64, 64),)


@pytest.mark.parametrize(
    ("advice", "there", "taken"),
    [
        ("original", ("original", "split_einsum_v2"), "original"),
        ("split-einsum", ("original", "split_einsum"), "split-einsum"),
        ("split-einsum", ("original", "split_einsum_v2"), "split-einsum-v2"),
        ("original", ("split_einsum",), "split-einsum"),
    ],
)
def test_the_variant_follows_the_machine(
    hub: HubServer,
    pull: Pull,
    monkeypatch: pytest.MonkeyPatch,
    advice: machine.Variant,
    there: tuple[str, ...],
    taken: str,
) -> None:
    hub.add(PALETTIZED, repositories.apples(there))
    monkeypatch.setattr("renderkiln.worker.models.pull.advice", lambda: Advice(advice, "cpu_and_gpu"))
    assert list(variants(pull())) == [taken]


def test_a_second_variant_joins_the_first_at_the_same_commit(hub: HubServer, pull: Pull, data: DataFolder) -> None:
    pull(variant="original")
    commit = hub.repositories[PALETTIZED].commit
    hub.seen.clear()
    folder = pull(variant="split-einsum-v2")
    assert set(variants(folder)) == {"original", "split-einsum-v2"}
    assert not any(name in repositories.small() for name in hub.fetched())
    origin = read_origin(folder)
    assert origin is not None
    assert origin.revision == commit
    assert {name.split("/")[0] for name in origin.files if ".mlmodelc/" in name} == {"original", "split-einsum-v2"}
    assert store.verify(folder, lambda _: None) == []
    hub.seen.clear()
    assert pull(variant="original") == folder
    assert hub.fetched() == []


def test_what_is_here_needs_no_hub(hub: HubServer, pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [pull(variant="original"), pull(ORIGINAL)]
    monkeypatch.setattr("renderkiln.worker.models.pull.advice", lambda: Advice("original", "cpu_and_gpu"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert [pull(), pull(ORIGINAL)] == folders
    with pytest.raises(BadInputError, match="weights, and no converted models"):
        pull(ORIGINAL, variant="original")
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE is set"):
        pull(variant="split-einsum-v2")


def test_a_repository_in_diffusers_layout_gives_one_precision_and_no_pickle(
    hub: HubServer, pull: Pull, data: DataFolder
) -> None:
    folder = pull(ORIGINAL)
    halves = [name for name in repositories.diffusers() if name.endswith(".fp16.safetensors")]
    assert hub.fetched() == sorted([*repositories.small(), *halves])
    assert find_model(data, ORIGINAL, "main") == folder
    assert find_model(data, ORIGINAL, hub.repositories[ORIGINAL].commit[:10]) == folder
    with pytest.raises(RevisionNotFoundError):
        find_model(data, ORIGINAL, "fp16")


def test_what_convert_wrote_and_somebody_uploaded_is_pulled_whole(hub: HubServer, pull: Pull, data: DataFolder) -> None:
    made = pull(variant="original", name="made")
    files = repositories.files_of(made)
    root = {name.removeprefix("original/"): content for name, content in files.items() if name != "origin.json"}
    hub.add("owner/converted", {**root, "README.md": b"#", "unet/diffusion_pytorch_model.bin": b"pickle"})
    folder = pull("owner/converted")
    assert variants(folder) == {"original": folder}
    assert set(repositories.files_of(folder)) == {*root, "origin.json"}
    with pytest.raises(BadInputError, match="original beside its small files"):
        pull("owner/converted", variant="split-einsum")
    hub.seen.clear()
    with pytest.raises(BadInputError, match="it has original"):
        pull("owner/converted", name="another", variant="split-einsum")
    assert hub.fetched() == ["manifest.json"]


def test_a_listing_of_several_pages_is_read_to_its_end(hub: HubServer, pull: Pull) -> None:
    hub.page = 3
    assert list(variants(pull(variant="split-einsum-v2"))) == ["split-einsum-v2"]
    assert sum("/tree/" in each.path for each in hub.seen) > 10


def test_another_revision_is_a_commit_a_branch_or_unknown(hub: HubServer, pull: Pull, data: DataFolder) -> None:
    hub.repositories[PALETTIZED].branches.add("v2/fixed")
    folder = pull(revision="v2/fixed")
    origin = read_origin(folder)
    assert origin is not None
    assert (origin.asked_for, origin.revision) == ("v2/fixed", hub.repositories[PALETTIZED].commit)
    assert find_model(data, PALETTIZED, "v2/fixed") == folder
    with pytest.raises(RevisionNotFoundError, match="no revision 'v9'"):
        pull(revision="v9", name="another")
    with pytest.raises(RevisionNotFoundError, match="here in revision"):
        pull(revision="main")


def test_a_connection_that_breaks_in_mid_file_is_taken_up_there(hub: HubServer, pull: Pull) -> None:
    hub.breaks[WEIGHTS] = (1500, 2)
    folder = pull(variant="original")
    assert hub.ranges() == ["bytes=1500-", "bytes=3000-"]
    served = hub.repositories[PALETTIZED].files[WEIGHTS]
    assert (folder / "original" / "Unet.mlmodelc" / "weights" / "weight.bin").read_bytes() == served


def test_a_pull_that_broke_off_is_taken_up_by_the_next(hub: HubServer, pull: Pull, data: DataFolder) -> None:
    hub.breaks[WEIGHTS] = (1500, 1)
    hub.refuse_after_break = True
    with pytest.raises(ModelFetchError, match="404"):
        pull(variant="original")
    assert own(data) == []
    hub.refuse_after_break = False
    before = set(hub.fetched())
    hub.seen.clear()
    folder = pull(variant="original")
    assert hub.ranges() == ["bytes=1500-"]
    assert before & set(hub.fetched()) == {WEIGHTS}
    assert store.verify(folder, lambda _: None) == []
    assert list((data.models / ".coming").iterdir()) == []


def test_a_server_that_knows_no_ranges_is_asked_from_the_start(hub: HubServer, pull: Pull) -> None:
    hub.knows_ranges = False
    hub.breaks[WEIGHTS] = (1500, 1)
    folder = pull(variant="original")
    served = hub.repositories[PALETTIZED].files[WEIGHTS]
    assert (folder / "original" / "Unet.mlmodelc" / "weights" / "weight.bin").read_bytes() == served


@pytest.mark.parametrize(
    "name",
    [WEIGHTS, "original/compiled/Unet.mlmodelc/model.mil", "tokenizer/vocab.json"],
    ids=["large", "small", "original"],
)
def test_a_file_that_arrives_corrupted_is_caught_and_fetched_again(
    hub: HubServer, pull: Pull, data: DataFolder, name: str
) -> None:
    repository = ORIGINAL if name.startswith("tokenizer") else PALETTIZED
    right = hub.repositories[repository].files[name]
    hub.corrupted[name] = bytes(len(right))
    with pytest.raises(CorruptFileError, match=name):
        pull(variant="original")
    assert own(data) == []
    hub.corrupted.clear()
    assert store.verify(pull(variant="original"), lambda _: None) == []


@pytest.mark.parametrize("change", [b"", b"more"], ids=["short", "long"])
def test_a_file_of_another_size_is_no_model(hub: HubServer, pull: Pull, data: DataFolder, change: bytes) -> None:
    right = hub.repositories[PALETTIZED].files[WEIGHTS]
    hub.corrupted[WEIGHTS] = right + change if change else right[:-1]
    with pytest.raises(ModelFetchError, match=WEIGHTS):
        pull(variant="original")
    assert own(data) == []


def test_a_model_that_does_not_fit_is_refused_before_it_is_fetched(
    hub: HubServer, pull: Pull, data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(data.ensure().models, "16k") as mounted:
        if not mounted:
            monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=16384))
        with pytest.raises(DiskFullError, match=r"0\.0 MB are needed and 0\.0 MB are free"):
            pull()
        assert hub.fetched() == []
        assert own(data) == []


def test_a_disk_that_fills_up_is_said_and_what_has_arrived_is_kept(
    hub: HubServer, pull: Pull, data: DataFolder
) -> None:
    arrived = "original/compiled/TextEncoder.mlmodelc/model.mil"
    with small_disk(data.ensure().models, "256k") as mounted:
        filler = data.models / "filler"
        hub.before_bytes = lambda name: _fill(filler) if mounted and name == WEIGHTS else None
        with nullcontext() if mounted else files_of_at_most(3000), pytest.raises(DiskFullError, match="is full"):
            pull(variant="original")
        assert own(data) == []
        hub.before_bytes = lambda _: None
        filler.unlink(missing_ok=True)
        hub.seen.clear()
        assert store.verify(pull(variant="original"), lambda _: None) == []
        assert arrived not in hub.fetched()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Where no disk can be mounted: no file of this process gets longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _fill(path: Path) -> None:
    """Leaves a disk without room."""
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def test_chunks_are_taken_where_there_is_no_whole_unet_and_spared_where_there_is(hub: HubServer, pull: Pull) -> None:
    chunked = repositories.compiled_folder(("TextEncoder", "UnetChunk1", "UnetChunk2", "VAEDecoder"))
    both = {**chunked, **repositories.compiled_folder()}
    hub.add(PALETTIZED, repositories.apples(("original", "split_einsum"), original=chunked, split_einsum=both))
    files = manifests.load(pull(variant="original") / "original").stages["unet"].packages
    assert [each.file for each in files] == ["UnetChunk1.mlmodelc", "UnetChunk2.mlmodelc"]
    files = manifests.load(pull(variant="split-einsum") / "split-einsum").stages["unet"].packages
    assert [each.file for each in files] == ["Unet.mlmodelc"]
    assert not any("Chunk" in name for name in hub.fetched() if name.startswith("split_einsum/"))


def test_two_variants_that_are_pulled_at_once_end_in_one_model(hub: HubServer, data: DataFolder) -> None:
    wishes: tuple[Variant, ...] = ("original", "split-einsum-v2")
    plans = [plan_pull(Request(PALETTIZED, form="compiled", variant=variant), data) for variant in wishes]
    for plan in (*plans, *plans[:1]):
        assert plan is not None
        again = plan is plans[0] and (data.models / PALETTIZED).exists()
        with pytest.raises(BadInputError, match="meanwhile") if again else nullcontext():
            run_pull(plan, data, lambda *_: None, lambda _: None)
    folder = find_model(data, PALETTIZED)
    assert set(variants(folder)) == set(wishes)
    assert store.verify(folder, lambda _: None) == []


def test_what_was_begun_of_another_commit_goes_when_a_pull_ends_but_not_what_is_being_pulled(
    hub: HubServer, pull: Pull, data: DataFolder
) -> None:
    hub.corrupted[WEIGHTS] = b"short"
    with pytest.raises(ModelFetchError):
        pull(variant="original")
    (begun,) = store.unfinished(data)
    hub.corrupted.clear()
    hub.add(PALETTIZED, {**repositories.apples(), "README.md": b"a new commit"})
    with store.coming(data, begun.name):
        assert len(store.unfinished(data)) == 1
        pull(variant="split-einsum-v2")
        assert store.unfinished(data) == [begun]
        with pytest.raises(BadInputError, match="right now"):
            store.remove(data, PALETTIZED)
    store.remove(data, PALETTIZED)
    assert (own(data), store.unfinished(data)) == ([], [])


def test_progress_ends_at_the_size_that_was_said(hub: HubServer, data: DataFolder) -> None:
    hub.breaks[WEIGHTS] = (1500, 1)
    plan = plan_pull(Request(PALETTIZED, form="compiled", variant="original"), data)
    assert plan is not None
    said: list[int] = []
    counted: list[int] = []
    run_pull(plan, data, lambda left, _: said.append(left), counted.append)
    assert said == [plan.size_bytes]
    assert sum(counted) == plan.size_bytes


def test_the_record_of_the_origin_names_every_file(pull: Pull) -> None:
    folder = pull()
    record = json.loads((folder / "origin.json").read_text())
    files = set(repositories.files_of(folder)) - {"origin.json", "original/manifest.json"}
    assert (set(record["files"]), record["original"]) == (files, ORIGINAL)

"""`renderkiln convert` of a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from renderkiln.home.models import find_model
from renderkiln.worker.runtimes import manifest as manifests

from . import repositories
from .conftest import Command
from .server import HubServer


@pytest.mark.timeout(600)
def test_a_repository_is_converted_from_what_is_needed_of_it_and_again_without_a_network(
    hub: HubServer, command: Command, data: object, tmp_path: Path
) -> None:
    shapes = repositories.files_of(find_model(data, "shapes"))  # type: ignore[arg-type]
    needed = {name: content for name, content in shapes.items() if name != "README.md"}
    others = {
        "README.md": b"#",
        "tiny.ckpt": b"pickle",
        "unet/diffusion_pytorch_model.bin": b"pickle" * 1000,
        "unet/diffusion_pytorch_model.non_ema.safetensors": repositories.safetensors(),
        "text_encoder/flax_model.msgpack": b"flax",
        "original/compiled/Unet.mlmodelc/weights/weight.bin": bytes(5000),
        "feature/deep/down/notes.json": b"{}",
    }
    repository = hub.add("owner/tiny", {**needed, **others})
    out = tmp_path / "out"
    line = ["convert", "owner/tiny", "-o", out, "--stages", "text_encoder", "--no-check", "--json"]
    said = command(*line)
    assert (said.returncode, "Traceback" in said.stderr) == (0, False)
    manifest = manifests.load(out, digests=True)
    assert (manifest.model, manifest.revision, set(manifest.stages)) == (
        "owner/tiny",
        repository.commit,
        {"text_encoder"},
    )
    assert hub.fetched() == sorted(needed)

    hub.seen.clear()
    said = command(*line, HF_HUB_OFFLINE="1")
    assert (said.returncode, '"kept": true' in said.stdout, hub.seen) == (0, True, [])
    said = command("convert", "owner/other", "-o", tmp_path / "other", HF_HUB_OFFLINE="1")
    assert (said.returncode, "HF_HUB_OFFLINE" in said.stderr, hub.seen) == (3, True, [])

"""Compiled models: what their metadata says, and what their manifests hold them to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.hub import repositories

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.runtimes import manifest as manifests
from renderkiln.worker.runtimes.compiled import describe_compiled, open_compiled
from renderkiln.worker.runtimes.manifest import PackageInfo


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    return repositories.write(repositories.compiled("Unet"), tmp_path / "Unet.mlmodelc")


def info(path: Path) -> PackageInfo:
    opened, said = open_compiled(path), describe_compiled(path)
    return PackageInfo(
        file=path.name, size_bytes=opened.size, sha256=opened.sha256(), inputs=said.inputs, outputs=said.outputs
    )


def test_its_inputs_outputs_and_bits_are_read(unet: Path) -> None:
    said = describe_compiled(unet)
    assert [(each.name, each.dtype, each.shapes) for each in said.inputs] == [
        ("sample", "float16", ((2, 4, 8, 8),)),
        ("timestep", "float16", ((2,),)),
        ("encoder_hidden_states", "float16", ((2, 32, 1, 77),)),
    ]
    assert [(each.name, each.shapes) for each in said.outputs] == [("noise_pred", ())]
    assert said.bits == 6


@pytest.mark.parametrize(
    ("precision", "bits"),
    [("Float16", 16), ("Float32", 32), ("Mixed (Float16, Palettized (4 bits))", 4), ("Ternary", None), ("", None)],
)
def test_bits_are_what_the_metadata_says(tmp_path: Path, precision: str, bits: float | None) -> None:
    files = repositories.compiled("Unet", storagePrecision=precision)
    assert describe_compiled(repositories.write(files, tmp_path / "Unet.mlmodelc")).bits == bits


def test_several_sizes_are_read_and_a_range_is_refused(tmp_path: Path) -> None:
    z: dict[str, Any] = {"name": "z", "type": "MultiArray", "dataType": "Float16", "shape": "[1, 4, 8, 8]"}
    listed = {**z, "hasShapeFlexibility": "1", "enumeratedShapes": "[[1, 4, 8, 8], [1, 4, 8, 12]]"}
    files = repositories.compiled("VAEDecoder", inputSchema=[listed])
    path = repositories.write(files, tmp_path / "a" / "VAEDecoder.mlmodelc")
    assert describe_compiled(path).inputs[0].shapes == ((1, 4, 8, 8), (1, 4, 8, 12))
    files = repositories.compiled(
        "VAEDecoder", inputSchema=[{**z, "hasShapeFlexibility": "1", "shapeRange": "[[1, 2]]"}]
    )
    with pytest.raises(ModelLoadError, match="does not describe"):
        describe_compiled(repositories.write(files, tmp_path / "b" / "VAEDecoder.mlmodelc"))


def test_a_manifest_is_compared_with_it(unet: Path) -> None:
    said = info(unet)
    assert manifests.compare(said, unet.parent, digests=True) is None
    weights = unet / "weights" / "weight.bin"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert manifests.compare(said, unet.parent, digests=False) is None
    assert "SHA-256 is another" in str(manifests.compare(said, unet.parent, digests=True))
    weights.unlink()
    assert "bytes, not" in str(manifests.compare(said, unet.parent, digests=False))


@pytest.mark.parametrize("missing", ["everything", "the heart"])
def test_what_is_no_compiled_model_is_refused(unet: Path, tmp_path: Path, missing: str) -> None:
    path = tmp_path / "none.mlmodelc"
    if missing == "the heart":
        path = unet
        for name in ("coremldata.bin", "model.mil"):
            (unet / name).unlink()
    with pytest.raises(ModelLoadError, match=r"does not exist|not a compiled"):
        open_compiled(path)


def test_a_link_that_leads_outside_is_refused(unet: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (unet / "stolen").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelLoadError, match="leads outside"):
        open_compiled(unet)


def test_a_manifest_of_before_is_still_read(tmp_path: Path) -> None:
    tensor = {"name": "x", "dtype": "float16", "shapes": [[1]]}
    package = {"file": "a.mlpackage", "size_bytes": 1, "sha256": "0" * 64, "inputs": [tensor], "outputs": [tensor]}
    stage = {"stage": "unet", "packages": [package], "bits": 16, "settings_digest": "d", "seconds": 1.0}
    old = {"schema_version": 1, "model": "m", "pipeline": "StableDiffusionPipeline", "family": "sd"}
    old |= {"variant": "original", "sizes": [[64, 64]], "stages": {"unet": stage}, "versions": {"torch": "2"}}
    (tmp_path / "manifest.json").write_text(json.dumps(old))
    assert manifests.read(tmp_path).stages["unet"].bits == 16

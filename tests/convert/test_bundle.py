"""The folder for Swift: names as Apple's Swift package looks for them, and the vocabulary from any tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from renderkiln.schema.errors import ConversionError
from renderkiln.worker.convert.bundle import compiled_names, write_vocabulary
from renderkiln.worker.runtimes.manifest import Manifest, PackageInfo, StageInfo


def stage(name: str, files: int = 1) -> StageInfo:
    packages = tuple(
        PackageInfo(file=f"{name}-{number}.mlpackage", size_bytes=1, sha256="0" * 64, inputs=(), outputs=())
        for number in range(files)
    )
    return StageInfo(stage=name, packages=packages, bits=16, settings_digest="d", seconds=1)


def test_compiled_models_have_apples_names() -> None:
    stages = [stage("text_encoder"), stage("unet", 2), stage("control-unet"), stage("controlnet-some_sd-canny")]
    manifest = Manifest(
        model="m",
        pipeline="p",
        family="sd",
        variant="original",
        sizes=((512, 512),),
        stages={each.stage: each for each in stages},
        versions={},
    )
    assert list(compiled_names(manifest).values()) == [
        "TextEncoder.mlmodelc",
        "UnetChunk1.mlmodelc",
        "UnetChunk2.mlmodelc",
        "ControlledUnet.mlmodelc",
        "controlnet/SomeSdCanny.mlmodelc",
    ]


@pytest.mark.parametrize("merges", [["a b", "ab c"], [["a", "b"], ["ab", "c"]]])
def test_the_vocabulary_is_taken_out_of_a_tokenizer_in_one_file(tmp_path: Path, merges: list[str]) -> None:
    content = {"model": {"vocab": {"a": 0, "ü</w>": 1}, "merges": merges}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "out").mkdir()
    write_vocabulary(tmp_path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "vocab.json").read_text(encoding="utf-8")) == {"a": 0, "ü</w>": 1}
    assert (tmp_path / "out" / "merges.txt").read_text() == "#version: 0.2\na b\nab c\n"


def test_no_vocabulary_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="tokenizer"):
        write_vocabulary(tmp_path, tmp_path)

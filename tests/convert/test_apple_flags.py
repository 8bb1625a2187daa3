"""A command line of Apple's converter means what it meant there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from renderkiln.schema.errors import BadInputError
from renderkiln.worker.convert.apple import translate

DOCS = Path(__file__).parents[2] / "docs" / "convert.md"


@pytest.mark.parametrize(
    ("apples", "ours"),
    [
        ("--model-version a/b -o out", "a/b -o out"),
        ("--attention-implementation SPLIT_EINSUM_V2", "--attention split-einsum-v2"),
        ("--attention-implementation=ORIGINAL", "--attention original"),
        ("--quantize-nbits 6 --chunk-unet", "--nbits 6 --chunk-unet"),
        ("--latent-h 64 --latent-w 96", "--latent-h 64 --latent-w 96"),
        ("--custom-vae-version a/vae", "--custom-vae a/vae"),
        ("--min-deployment-target iOS17", "--deployment-target macOS14"),
        ("--bundle-resources-for-swift-cli", "--bundle-for-swift"),
        ("--check-output-correctness", "--check"),
        ("--xl-version --compute-unit CPU_AND_NE --nbits 4", "--nbits 4"),
        ("--convert-unet --convert-text-encoder", "--stages unet,text_encoders"),
        ("--convert-vae-decoder --convert-safety-checker", "--stages vae_decoder,safety_checker"),
        (
            "--convert-unet --unet-support-controlnet --convert-controlnet a/b c/d",
            "--controlnet a/b --controlnet c/d --stages control-unet,controlnet",
        ),
        ("--convert-controlnet a/b --model-version m/n", "--controlnet a/b m/n"),
        ("shapes -o out --nbits 6", "shapes -o out --nbits 6"),
    ],
)
def test_a_flag_of_apples_becomes_ours(apples: str, ours: str) -> None:
    assert translate(apples.split()) == ours.split()


@pytest.mark.parametrize("flag", ["--sd3-version", "--convert-mmdit", "--include-t5", "--refiner-version x"])
def test_what_only_apples_converter_does_is_refused_by_name(flag: str) -> None:
    with pytest.raises(BadInputError, match=flag.split()[0]):
        translate(["m", *flag.split()])


def test_the_documentation_has_every_flag_of_apples_in_its_table() -> None:
    from renderkiln.worker.convert import apple

    flags = {*apple._RENAMED, *apple._IGNORED, *apple._REFUSED, *apple._STAGES}
    flags |= {"--model-version", "--attention-implementation", "--min-deployment-target", "--convert-controlnet"}
    flags |= {"--unet-support-controlnet", "--unet-batch-one", "--chunk-unet", "--latent-h", "--latent-w"}
    documented = set(re.findall(r"--[a-z0-9-]+", DOCS.read_text(encoding="utf-8")))
    assert flags <= documented

"""What Apple's names mean, what suits a chip, and which files of a listing are chosen: all of it from names alone."""

from __future__ import annotations

import pytest

from renderkiln.home import machine
from renderkiln.schema.errors import ModelFetchError
from renderkiln.worker.models.apple import ORIGINALS, Part, file_name, part_of, variant_of
from renderkiln.worker.models.hub import REPOSITORY, safe_path, small_files, weights_of
from renderkiln.worker.models.machine import Chip, choose, read_chip
from renderkiln.worker.models.picking import choose_files

PREFIX = "Stable_Diffusion_version_stabilityai_stable-diffusion-2-base"


@pytest.mark.parametrize(
    ("file", "part"),
    [
        (f"{PREFIX}_text_encoder.mlpackage", Part("text_encoder")),
        (f"{PREFIX}_text_encoder_2.mlpackage", Part("text_encoder_2")),
        (f"{PREFIX}_unet.mlpackage", Part("unet")),
        (f"{PREFIX}_unet_chunk1.mlpackage", Part("unet", 1)),
        (f"{PREFIX}_control-unet.mlpackage", Part("control-unet")),
        (f"{PREFIX}_control-unet_chunk2.mlpackage", Part("control-unet", 2)),
        (f"{PREFIX}_vae_decoder.mlpackage", Part("vae_decoder")),
        (f"{PREFIX}_safety_checker.mlpackage", Part("safety_checker")),
        ("vae_encoder.mlpackage", Part("vae_encoder")),
        ("ControlNet_lllyasviel_sd-controlnet-canny.mlpackage", Part("controlnet-lllyasviel_sd-controlnet-canny")),
        ("TextEncoder.mlmodelc", Part("text_encoder")),
        ("TextEncoder2.mlmodelc", Part("text_encoder_2")),
        ("UnetChunk2.mlmodelc", Part("unet", 2)),
        ("ControlledUnetChunk1.mlmodelc", Part("control-unet", 1)),
        ("VAEDecoder.mlmodelc", Part("vae_decoder")),
        ("SafetyChecker.mlmodelc", Part("safety_checker")),
        ("MultilingualTextEncoderProjection.mlmodelc", Part("multilingual_projection")),
        ("MultilingualTextEncoderProjection.mlpackage", Part("multilingual_projection")),
        ("Unet.aimodel", Part("unet")),
        ("TextEncoder2.aimodel", Part("text_encoder_2")),
        ("MMDiT.aimodel", None),
        ("VAEDecoder_half.aimodel", None),
        ("UnetRefiner.mlmodelc", None),
        ("UnetChunk3.mlmodelc", None),
        ("Unet.mlmodel", None),
        ("vocab.json", None),
    ],
)
def test_a_package_is_what_its_name_says(file: str, part: Part | None) -> None:
    assert part_of(file) == part


def test_compiled_controlnets_have_a_folder_of_their_own_and_come_to_lie_beside_the_others() -> None:
    part = part_of("LllyasvielSdControlnetCanny.mlmodelc", in_controlnet_folder=True)
    assert part == Part("controlnet-LllyasvielSdControlnetCanny")
    assert file_name("Canny.mlmodelc", in_controlnet_folder=True) == "ControlNet_Canny.mlmodelc"
    assert file_name("Unet.mlmodelc", in_controlnet_folder=False) == "Unet.mlmodelc"
    names = [f"split_einsum/compiled/{each}/coremldata.bin" for each in ("Unet.mlmodelc", "controlnet/Canny.mlmodelc")]
    choice = choose_files("owner/name", names, None, "compiled", "original")
    assert {str(path) for path in choice.files.values()} == {
        "split-einsum/Unet.mlmodelc/coremldata.bin",
        "split-einsum/ControlNet_Canny.mlmodelc/coremldata.bin",
    }


def test_a_repository_without_folders_for_variants_is_the_original() -> None:
    names = ["compiled/Unet.mlmodelc/coremldata.bin", "packages/x_unet.mlpackage/Manifest.json"]
    choice = choose_files("apple/coreml-stable-diffusion-xl-base", names, None, "packages", "split-einsum")
    assert (choice.variant, choice.there, list(choice.files)) == ("original", ("original",), [names[1]])


@pytest.mark.parametrize("text", ["split_einsum_v2", "split-einsum-v2", "SPLIT_EINSUM_V2"])
def test_both_spellings_of_a_variant_are_understood(text: str) -> None:
    assert variant_of(text) == "split-einsum-v2"
    assert variant_of(f"{text}x") is None


@pytest.mark.parametrize(
    ("chip", "advice"),
    [
        (Chip(has_neural_engine=False, performance_cores=0), ("original", "cpu_and_gpu")),
        (Chip(has_neural_engine=True, performance_cores=4), ("split-einsum", "cpu_and_ne")),
        (Chip(has_neural_engine=True, performance_cores=7), ("split-einsum", "cpu_and_ne")),
        (Chip(has_neural_engine=True, performance_cores=8), ("original", "cpu_and_gpu")),
        (Chip(has_neural_engine=True, performance_cores=16), ("original", "cpu_and_gpu")),
        (Chip(has_neural_engine=False, performance_cores=8), ("original", "cpu_and_gpu")),
    ],
)
def test_what_suits_a_chip_is_the_rule_of_diffusers_for_mac(chip: Chip, advice: tuple[str, str]) -> None:
    assert choose(chip) == advice


@pytest.mark.parametrize(
    ("values", "chip"),
    [
        ({"hw.optional.arm64": "1", "hw.perflevel0.physicalcpu": "4"}, Chip(True, 4)),
        ({"hw.optional.arm64": "1", "hw.perflevel0.physicalcpu": "8", "kern.hv_vmm_present": "0"}, Chip(True, 8)),
        ({"hw.optional.arm64": "1", "hw.perflevel0.physicalcpu": "3", "kern.hv_vmm_present": "1"}, Chip(False, 3)),
        ({}, Chip(False, 0)),
    ],
    ids=["M1", "M1 Max", "virtual machine", "Intel"],
)
def test_a_mac_is_asked_by_sysctl(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], chip: Chip) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine, "_sysctl", lambda: values)
    assert read_chip() == chip


def test_what_is_no_mac_has_no_neural_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    assert read_chip() == Chip(False, 0)


@pytest.mark.parametrize("name", ["../a", "a/../b", "/a", "a//b", "a\\b", "a\0", "a\n", "C:a", "", "./a", "a/."])
def test_a_name_that_could_lead_astray_is_refused(name: str) -> None:
    with pytest.raises(ModelFetchError, match="no such name"):
        safe_path("owner/name", name)


def test_small_files_are_those_of_diffusers_layout_and_no_others() -> None:
    small = [
        "model_index.json",
        "unet/config.json",
        "controlnet-canny/config.json",
        "tokenizer_2/merges.txt",
        "scheduler/scheduler_config.json",
    ]
    others = [
        "config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/deep/config.json",
        "tokenizer/model.bin",
        "tokenizer/deep/vocab.json",
        "README.md",
    ]
    assert small_files([*others, *small]) == small


def test_of_two_precisions_the_half_one_is_taken_with_all_its_shards() -> None:
    half = ["unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"]
    half += ["unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors"]
    half += ["unet/diffusion_pytorch_model.safetensors.index.fp16.json"]
    full = ["unet/diffusion_pytorch_model-00001-of-00001.safetensors", "unet/diffusion_pytorch_model.bin"]
    assert weights_of([*half, *full, "unet/deep/model.safetensors"], "unet/") == half
    assert weights_of(full, "unet/") == full[:1]


def test_the_table_of_originals_names_repositories() -> None:
    assert all(REPOSITORY.fullmatch(each) for pair in ORIGINALS.items() for each in pair)
    assert all(name.startswith("apple/coreml-") for name in ORIGINALS)

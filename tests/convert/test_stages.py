"""Stages of every kind, converted and read back: Apple's names, shapes and types, and numbers near the original's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.coreml.conftest import Library, library
from tests.engine import models as engine_models

from renderkiln.schema.errors import BadInputError, ConversionCheckError
from renderkiln.worker.convert.backends import coreml
from renderkiln.worker.convert.check import BAR, psnr
from renderkiln.worker.convert.stages import SafetyCheckerStage, TextEncoderStage
from renderkiln.worker.engine.libraries import diffusers, transformers
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from . import models
from .conftest import Convert, Converted, plan_of

__all__ = ["library"]
HALF, SINGLE = 65552, 65568


def interface(converted: Converted) -> tuple[dict[str, Any], dict[str, int]]:
    """Inputs by name with type and shape, outputs by name with type, as the package's spec has them."""
    (package,) = converted.packages
    description = ct.utils.load_spec(str(package)).description
    inputs = {
        each.name: (each.type.multiArrayType.dataType, tuple(each.type.multiArrayType.shape))
        for each in description.input
    }
    return inputs, {each.name: each.type.multiArrayType.dataType for each in description.output}


def test_text_encoder(tiny: Path, convert: Convert) -> None:
    converted = convert(tiny / "sd1", "text_encoder")
    assert converted.worst > BAR
    assert converted.phases == ("loading", "running the original", "tracing", "converting", "checking", "hashing")
    assert interface(converted) == (
        {"input_ids": (SINGLE, (1, 77))},
        {"last_hidden_state": SINGLE, "pooled_outputs": SINGLE},
    )
    assert {each.inputs for each in converted.done.check.results} == {"random 1", "random 2", "real"}  # type: ignore[union-attr]


def test_token_ids_beyond_what_half_precision_counts_are_looked_up_right(
    tiny: Path, tmp_path: Path, convert: Convert
) -> None:

    model = tmp_path / "model"
    shutil.copytree(tiny / "sd1", model)
    shutil.rmtree(model / "text_encoder")
    models.save_large_vocabulary(model / "text_encoder")
    assert convert(model, "text_encoder").worst > 2 * BAR - 20


def test_xl_text_encoders(tiny: Path, convert: Convert) -> None:
    for stage in ("text_encoder", "text_encoder_2"):
        converted = convert(tiny / "xl", stage, nbits=8)
        assert converted.worst > BAR
        assert interface(converted)[1] == {"hidden_embeds": SINGLE, "pooled_outputs": SINGLE}
        # None of its weights is large enough for a palette.
        assert converted.done.bits == 16


def test_vae_halves(tiny: Path, convert: Convert) -> None:
    decoder, encoder = convert(tiny / "sd1", "vae_decoder"), convert(tiny / "sd1", "vae_encoder")
    assert min(decoder.worst, encoder.worst) > BAR
    assert interface(decoder) == ({"z": (HALF, (1, 4, 16, 16))}, {"image": SINGLE})
    assert interface(encoder) == ({"x": (HALF, (1, 3, 32, 32))}, {"latent": SINGLE})


def test_the_vae_of_xl_stays_in_single_precision_unless_it_is_another(tiny: Path, convert: Convert) -> None:
    own = convert(tiny / "xl", "vae_decoder")
    other = convert(tiny / "xl", "vae_decoder", source={"custom_vae": str(tiny / "sd1")})
    assert (own.done.bits, interface(own)[0]["z"][0]) == (32, SINGLE)
    assert (other.done.bits, interface(other)[0]["z"][0]) == (16, HALF)
    assert own.worst > other.worst > BAR


def test_safety_checker(tiny: Path, convert: Convert) -> None:
    converted = convert(tiny / "sd1", "safety_checker")
    assert converted.worst > BAR
    assert interface(converted) == (
        {"clip_input": (HALF, (1, 3, 32, 32)), "images": (HALF, (1, 32, 32, 3)), "adjustment": (HALF, (1,))},
        {"filtered_images": SINGLE, "has_nsfw_concepts": SINGLE, "concept_scores": SINGLE},
    )


@pytest.mark.parametrize("threshold", [-2.0, 2.0], ids=["flags all", "flags none"])
def test_the_safety_checker_decides_as_diffusers_does(threshold: float) -> None:
    torch.manual_seed(0)
    checker = engine_models.make_safety_checker(threshold).eval()
    picture, images = torch.randn(1, 3, 32, 32), torch.rand(1, 8, 8, 3)
    expected, flags = checker.forward_onnx(picture, images.clone())
    with torch.no_grad():
        filtered, flagged, scores = SafetyCheckerStage(checker)(picture, images, torch.zeros(1))
    assert torch.equal(filtered, expected)
    assert (flagged.shape, bool(flagged)) == ((1, 1, 1, 1), bool(flags))
    assert scores.shape == (1, 17)


def test_v_prediction_and_linear_projections(tiny: Path, convert: Convert) -> None:
    converted = convert(tiny / "sd2", "unet", attention="split-einsum", nbits=6, chunk_unet=True)
    check = converted.done.check
    assert check is not None
    assert min(each.decibels for each in check.results) > BAR
    assert len(check.compressed) == len(check.results)
    assert [each.name for each in converted.packages] == [
        f"Stable_Diffusion_version_sd2_unet_chunk{number}.mlpackage" for number in (1, 2)
    ]
    assert converted.done.bits == 6


def test_xl_unet(tiny: Path, convert: Convert) -> None:
    converted = convert(tiny / "xl", "unet", attention="split-einsum-v2", unet_batch_one=True)
    assert converted.worst > BAR
    inputs, outputs = interface(converted)
    width = engine_models.WIDTH
    assert inputs == {
        "sample": (HALF, (1, 4, 16, 16)),
        "timestep": (HALF, (1,)),
        "encoder_hidden_states": (HALF, (1, 2 * width, 1, 77)),
        "time_ids": (HALF, (1, 6)),
        "text_embeds": (HALF, (1, width)),
    }
    assert outputs == {"noise_pred": SINGLE}


def test_a_controlnet_and_its_unet_run_together(tiny: Path, convert: Convert) -> None:
    source = {"controlnets": (str(tiny / "edges"),)}
    unet = convert(tiny / "sd1", "control-unet", source=source, attention="split-einsum")
    controlnet = convert(tiny / "sd1", "controlnet-edges", source=source, attention="split-einsum")
    assert min(unet.worst, controlnet.worst) > BAR
    assert [each.name for each in controlnet.packages] == ["ControlNet_edges.mlpackage"]
    inputs, _ = interface(unet)
    given = {
        name: np.random.default_rng(0).standard_normal(shape).astype(np.float16) for name, (_, shape) in inputs.items()
    }
    guide = {name: given[name] for name in ("sample", "timestep", "encoder_hidden_states")}
    guide["controlnet_cond"] = np.ones((2, 3, 32, 32), np.float16)
    residuals = ReferenceRuntime.load(controlnet.packages[0]).predict(guide)
    halves = {name: value.astype(np.float16) for name, value in residuals.items()}
    guided = ReferenceRuntime.load(unet.packages[0]).predict({**given, **halves})
    assert guided["noise_pred"].shape == (2, 4, 16, 16)


@pytest.mark.parametrize("attention", ["original", "split-einsum"])
def test_one_model_of_several_sizes(tiny: Path, convert: Convert, attention: str) -> None:
    sizes = ((32, 32), (48, 32), (32, 64))
    converted = convert(tiny / "sd1", "unet", attention=attention, sizes=sizes)
    assert converted.worst > BAR
    assert len(converted.done.check.results) == len(sizes) + 1  # type: ignore[union-attr]
    (package,) = converted.done.packages
    (sample,) = [each for each in package.inputs if each.name == "sample"]
    assert sample.shapes == ((2, 4, 16, 16), (2, 4, 16, 24), (2, 4, 32, 16))


def test_several_sizes_in_several_inputs(tiny: Path, convert: Convert) -> None:
    source = {"controlnets": (str(tiny / "edges"),)}
    sizes = ((32, 32), (48, 32))
    converted = convert(tiny / "sd1", "controlnet-edges", source=source, sizes=sizes, target="macOS15")
    assert converted.worst > BAR


def test_a_lora_is_in_what_is_converted(library: Library, tmp_path: Path, convert: Convert) -> None:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    random = torch.Generator().manual_seed(0)
    lora = models.save_lora(
        tmp_path / "a.safetensors",
        {
            f"unet.{layer}.lora_A.weight": torch.randn(4, engine_models.WIDTH, generator=random),
            f"unet.{layer}.lora_B.weight": torch.randn(32, 4, generator=random),
        },
    )
    fused = convert(library.torch("tiny"), "unet", loras=({"path": lora, "weight": 0.7},))
    assert fused.worst > BAR
    inputs = {name: np.ones(shape, np.float16) for name, (_, shape) in interface(fused)[0].items()}
    (plain,) = library.converted("tiny").glob("*_unet.mlpackage")
    results = [ReferenceRuntime.load(each).predict(inputs)["noise_pred"] for each in (plain, *fused.packages)]
    assert psnr(*results) < BAR


def test_a_checkpoint_file_gives_what_the_folder_gives(tiny: Path, tmp_path: Path) -> None:
    from renderkiln.worker.convert.loading import load_component

    checkpoint = models.save_checkpoint(tmp_path / "tiny.safetensors", tiny / "sd1")
    source, plan, _ = plan_of(checkpoint, source={"config": tiny / "sd1"})
    assert [each.stage for each in plan.stages] == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    folder, _, _ = plan_of(tiny / "sd1")
    for component in ("unet", "vae", "text_encoder"):
        expected = load_component(folder, component).state_dict()
        found = load_component(source, component).state_dict()
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


def test_a_multilingual_projection(tiny: Path, tmp_path: Path, convert: Convert) -> None:
    path = tmp_path / "projection.safetensors"
    random = torch.Generator().manual_seed(0)
    width = engine_models.WIDTH
    save_file({"weight": torch.randn(width, 512, generator=random), "bias": torch.randn(width, generator=random)}, path)
    converted = convert(tiny / "sd1", "multilingual_projection", source={"projection": path})
    assert converted.worst > BAR
    assert converted.packages[0].name == "MultilingualTextEncoderProjection.mlpackage"
    assert interface(converted) == (
        {"nlcontextualembeddings_output": (SINGLE, (1, 256, 512))},
        {"encoder_hidden_states": SINGLE},
    )


@pytest.mark.parametrize("attention", ["original", "split-einsum"])
def test_a_unet_for_the_system_s_text_encoder(tiny: Path, tmp_path: Path, convert: Convert, attention: str) -> None:
    path = tmp_path / "projection.safetensors"
    save_file({"weight": torch.zeros(engine_models.WIDTH, 512)}, path)
    converted = convert(tiny / "sd1", "unet", source={"projection": path}, attention=attention)
    assert converted.worst > BAR
    taken, _ = interface(converted)
    assert taken["encoder_hidden_states"] == (HALF, (2, engine_models.WIDTH, 1, 256))


def test_a_stage_that_differs_too_much_is_an_error_that_says_where(
    tiny: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = coreml.trace

    def damaged(stage: Any, plan: Any) -> Any:
        stage.decoder.conv_out.weight.data *= 1.5
        return whole(stage, plan)

    monkeypatch.setattr(coreml, "trace", damaged)
    with pytest.raises(ConversionCheckError, match=r"vae_decoder: its output image comes to \d+\.\d dB"):
        convert(tiny / "sd1", "vae_decoder")


def test_a_lora_that_does_not_fit_is_an_error(tiny: Path, tmp_path: Path, convert: Convert) -> None:
    factors = {"unet.x.lora_A.weight": torch.ones(1, 2), "unet.x.lora_B.weight": torch.ones(2, 1)}
    path = models.save_lora(tmp_path / "a.safetensors", factors)
    with pytest.raises(BadInputError, match="another model"):
        convert(tiny / "sd1", "unet", loras=({"path": path},))


def test_psnr_is_apples() -> None:
    reference = np.array([4.0, -8.0, 2.0], np.float32)
    assert psnr(reference, reference + np.float32(0.08)) == pytest.approx(40.0, abs=0.01)
    assert psnr(reference, np.array([np.nan, 0, 0])) == -np.inf
    assert psnr(np.zeros(3), np.zeros(3)) == pytest.approx(100.0)


def test_a_text_encoder_with_a_projection_gives_its_projected_output(tmp_path: Path) -> None:
    config = engine_models.text_config(engine_models.save_tokenizer(tmp_path / "t"))
    encoder = transformers.CLIPTextModelWithProjection(config).eval()
    ids = torch.arange(77, dtype=torch.int32)[None]
    with torch.no_grad():
        states, pooled = TextEncoderStage(encoder, hidden=True)(ids)
        expected = encoder(ids, output_hidden_states=True)
    assert torch.equal(pooled, expected.text_embeds)
    assert torch.equal(states, expected.hidden_states[-2])


def test_what_is_loaded_is_what_the_file_holds(tiny: Path) -> None:
    from renderkiln.worker.convert.loading import load_component

    source, _, _ = plan_of(tiny / "sd1")
    held = load_file(tiny / "sd1" / "unet" / "diffusion_pytorch_model.safetensors")
    unet = load_component(source, "unet")
    assert isinstance(unet, diffusers.UNet2DConditionModel)
    assert all(torch.equal(unet.state_dict()[name], tensor.float()) for name, tensor in held.items())

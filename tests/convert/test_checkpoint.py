"""Single files: which checkpoints are taken, where their small files come from, and what other files are said to be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.convert.conftest import plan_of
from tests.engine import models as engine_models

from renderkiln.home.folder import DataFolder
from renderkiln.schema.errors import BadInputError, HubUnavailableError, ModelLoadError, UnsupportedModelError
from renderkiln.worker.convert.source import find_source

from . import models

UNET = "model.diffusion_model.input_blocks"
FIRST, CROSS = f"{UNET}.0.0.weight", f"{UNET}.2.1.transformer_blocks.0.attn2.to_k.weight"
TEXT, XL_TEXT = "conditioner.embedders.0.transformer.text_model.x", "conditioner.embedders.1.model.x"
REFINER_TEXT = "conditioner.embedders.0.model.transformer.resblocks.0.mlp.c_proj.bias"


def save(path: Path, **shapes: tuple[int, ...]) -> Path:
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("shapes", "repository"),
    [
        ({CROSS: (4, 768)}, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ({CROSS: (4, 768), FIRST: (4, 9, 3, 3)}, "stable-diffusion-v1-5/stable-diffusion-inpainting"),
        ({CROSS: (4, 1024), FIRST: (4, 4, 3, 3)}, "stabilityai/stable-diffusion-2-1"),
        ({CROSS: (4, 1024), FIRST: (4, 9, 3, 3)}, "stabilityai/stable-diffusion-2-inpainting"),
        ({TEXT: (1,), XL_TEXT: (1,), FIRST: (4, 4, 3, 3)}, "stabilityai/stable-diffusion-xl-base-1.0"),
        ({TEXT: (1,), XL_TEXT: (1,), FIRST: (4, 9, 3, 3)}, "diffusers/stable-diffusion-xl-1.0-inpainting-0.1"),
    ],
)
def test_a_checkpoints_small_files_come_from_a_model_of_its_kind(
    tmp_path: Path, data: DataFolder, offline: Path, shapes: dict[str, tuple[int, ...]], repository: str
) -> None:
    path = save(tmp_path / "a.safetensors", **shapes)
    with pytest.raises(HubUnavailableError, match=rf"come from {repository}, .*--config"):
        find_source(str(path), data)


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({REFINER_TEXT: (1,), FIRST: (4, 4, 3, 3)}, "refiner of Stable Diffusion XL"),
        ({CROSS: (4, 768), FIRST: (4, 8, 3, 3)}, "InstructPix2Pix"),
        ({CROSS: (4, 1024), FIRST: (4, 5, 3, 3)}, "depth-to-image"),
        ({CROSS: (4, 1024), FIRST: (4, 7, 3, 3)}, "upscaler"),
        ({CROSS: (4, 768), FIRST: (4, 6, 3, 3)}, "6 input channels"),
        ({f"{UNET}.1.0.time_stack.in_layers.0.bias": (1,), FIRST: (4, 8, 3, 3)}, "Stable Video Diffusion"),
        ({"control_model.input_hint_block.0.weight": (1,), FIRST: (4, 4, 3, 3)}, "ControlNet.*--controlnet"),
        ({"controlnet_cond_embedding.conv_in.weight": (1,), "down_blocks.0.x": (1,)}, "ControlNet.*--controlnet"),
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (1,)}, "LoRA.*--lora"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (1,)}, "LoRA.*--lora"),
        ({"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (1,)}, "LoRA.*--lora"),
        ({"down_blocks.0.attentions.0.attn1.processor.to_q_lora.down.weight": (1,)}, "LoRA.*--lora"),
        ({"diffusion_model.input_blocks.4.1.proj_in.lokr_w1": (1,)}, "LoRA.*--lora"),
        ({"emb_params": (2, 768)}, "textual inversion"),
        ({"clip_g": (2, 1280), "clip_l": (2, 768)}, "textual inversion"),
        ({"down_blocks.0.motion_modules.0.temporal_transformer.norm.bias": (1,)}, "AnimateDiff"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,), "first_stage_model.decoder.conv_in.bias": (1,)}, "fusion 3"),
        ({"joint_blocks.0.x_block.mlp.fc1.weight": (1,)}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "Flux"),
        ({"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": (1,)}, "Flux"),
        ({"single_transformer_blocks.0.attn.to_q.weight": (1,)}, "Flux"),
        ({"model.diffusion_model.patchify_proj.weight": (1,)}, "another architecture"),
        ({"down_blocks.0.resnets.0.conv1.bias": (1,), "conv_in.bias": (1,)}, "UNet alone.*model_index.json"),
        ({"encoder.conv_in.bias": (1,), "decoder.up.0.block.0.conv1.bias": (1,)}, "VAE.*--custom-vae"),
        ({"encoder.down_blocks.0.resnets.0.conv1.bias": (1,)}, "VAE.*--custom-vae"),
        ({"first_stage_model.decoder.conv_in.bias": (1,)}, "VAE.*--custom-vae"),
        ({"text_model.embeddings.position_embedding.weight": (1,)}, "text encoder"),
    ],
)
def test_another_kind_of_file_is_refused_by_what_it_is(
    tmp_path: Path, data: DataFolder, tiny: Path, shapes: dict[str, tuple[int, ...]], kind: str
) -> None:
    path = save(tmp_path / "a.safetensors", **shapes)
    for config in (None, tiny / "sd1"):
        with pytest.raises(UnsupportedModelError, match=rf"a\.safetensors is .*{kind}.*from one file"):
            find_source(str(path), data, config=config)


def test_a_file_of_anything_else_is_said_to_be_none(tmp_path: Path, data: DataFolder) -> None:
    with pytest.raises(ModelLoadError, match="1 tensors, and none"):
        find_source(str(save(tmp_path / "a.safetensors", weight=(1,))), data)


def test_a_gguf_file_is_refused_whatever_its_name(tmp_path: Path, data: DataFolder) -> None:
    for name in ("a.gguf", "a.safetensors"):
        (tmp_path / name).write_bytes(b"GGUF\x03\0\0\0" + bytes(100))
        with pytest.raises(UnsupportedModelError, match="GGUF"):
            find_source(str(tmp_path / name), data)


@pytest.mark.parametrize(("mark", "schedule"), [("v_pred", "v-prediction"), ("edm_mean", "EDM")])
def test_a_checkpoint_of_another_schedule_needs_its_own_settings(
    tmp_path: Path, data: DataFolder, mark: str, schedule: str
) -> None:
    path = save(tmp_path / "a.safetensors", **{TEXT: (1,), XL_TEXT: (1,), FIRST: (4, 4, 3, 3), mark: (1,)})
    with pytest.raises(BadInputError, match=rf"{schedule}.*--config"):
        find_source(str(path), data)


def test_a_checkpoint_of_a_kind_without_known_settings_needs_its_own(tiny: Path, tmp_path: Path) -> None:
    checkpoint = models.save_checkpoint(tmp_path / "tiny.safetensors", tiny / "sd1")
    with pytest.raises(BadInputError, match="--config"):
        plan_of(checkpoint)
    with pytest.raises(BadInputError, match=r"--config .*model_index\.json"):
        plan_of(checkpoint, source={"config": tmp_path})


def test_an_inpainting_checkpoint_goes_with_an_inpainting_models_settings(tiny: Path, tmp_path: Path) -> None:
    from renderkiln.worker.convert.loading import load_component

    model = engine_models.save_sd(tmp_path / "inpaint", unet={"in_channels": 9})
    checkpoint = models.save_checkpoint(tmp_path / "tiny.safetensors", model)
    with pytest.raises(BadInputError, match=r"takes 9 channels, and by the config 4\..*--config"):
        plan_of(checkpoint, source={"config": tiny / "sd1"})
    source, plan, _ = plan_of(checkpoint, source={"config": model})
    sample = next(stage for stage in plan.stages if stage.stage == "unet").inputs[0]
    assert sample.shapes[0][1] == 9
    expected = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert torch.equal(load_component(source, "unet").conv_in.weight, expected)

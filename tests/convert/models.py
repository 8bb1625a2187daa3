"""Makes the tiny models that are converted: with v-prediction, LoRAs, and a checkpoint in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.engine import models

from renderkiln.worker.engine.libraries import diffusers, transformers


def save_sd1(folder: Path) -> Path:
    """As Stable Diffusion 1: convolutions around its transformers, a safety checker."""
    return models.save_sd(folder, threshold=0.5)


def save_sd2(folder: Path) -> Path:
    """As Stable Diffusion 2: linear projections, heads by block, v-prediction."""
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False)
    changes = {"use_linear_projection": True, "attention_head_dim": (2, 4)}
    return models.save_sd(folder, scheduler=scheduler, unet=changes)


def save_large_vocabulary(folder: Path) -> Path:
    """A text encoder with as many tokens as CLIP has: their ids are beyond what half precision counts to."""
    torch.manual_seed(4)
    config = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=49407,
        bos_token_id=49406,
        pad_token_id=49407,
    )
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder


def save_checkpoint(path: Path, model: Path) -> Path:
    """A tiny model's weights under the names of the original Stable Diffusion, in one file."""
    unet = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")
    text = load_file(model / "text_encoder" / "model.safetensors")
    vae = load_file(model / "vae" / "diffusion_pytorch_model.safetensors")
    tensors = {f"model.diffusion_model.{_unet_name(name)}": tensor for name, tensor in unet.items()}
    tensors |= {f"first_stage_model.{_vae_name(name)}": _vae_shape(name, tensor) for name, tensor in vae.items()}
    for name, tensor in text.items():
        tensors[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _renamed(name: str, pairs: dict[str, str]) -> str:
    for ours, theirs in pairs.items():
        name = name.replace(ours, theirs)
    return name


_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}


def _unet_name(name: str) -> str:
    """For two blocks of one layer each, attention in the second one, as `models.make_unet` has them."""
    ends = {
        "conv_in.": "input_blocks.0.0.",
        "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.",
        "conv_norm_out.": "out.0.",
        "conv_out.": "out.2.",
    }
    for ours, theirs in ends.items():
        if name.startswith(ours):
            return name.replace(ours, theirs, 1)
    blocks = {
        "down_blocks.0.resnets.0.": "input_blocks.1.0.",
        "down_blocks.0.downsamplers.0.conv.": "input_blocks.2.0.op.",
        "down_blocks.1.resnets.0.": "input_blocks.3.0.",
        "down_blocks.1.attentions.0.": "input_blocks.3.1.",
        "mid_block.resnets.0.": "middle_block.0.",
        "mid_block.attentions.0.": "middle_block.1.",
        "mid_block.resnets.1.": "middle_block.2.",
        "up_blocks.0.resnets.0.": "output_blocks.0.0.",
        "up_blocks.0.attentions.0.": "output_blocks.0.1.",
        "up_blocks.0.resnets.1.": "output_blocks.1.0.",
        "up_blocks.0.attentions.1.": "output_blocks.1.1.",
        "up_blocks.0.upsamplers.0.conv.": "output_blocks.1.2.conv.",
        "up_blocks.1.resnets.0.": "output_blocks.2.0.",
        "up_blocks.1.resnets.1.": "output_blocks.3.0.",
    }
    for ours, theirs in blocks.items():
        if name.startswith(ours):
            rest = name.removeprefix(ours)
            return theirs + (_renamed(rest, _RESNET) if "resnets" in ours else rest)
    raise AssertionError(name)


def _vae_name(name: str) -> str:
    pairs = {
        "mid_block.resnets.0.": "mid.block_1.",
        "mid_block.attentions.0.": "mid.attn_1.",
        "mid_block.resnets.1.": "mid.block_2.",
        "conv_norm_out.": "norm_out.",
        "conv_shortcut.": "nin_shortcut.",
        "group_norm.": "norm.",
        "to_q.": "q.",
        "to_k.": "k.",
        "to_v.": "v.",
        "to_out.0.": "proj_out.",
        "downsamplers.0.": "downsample.",
        "upsamplers.0.": "upsample.",
    }
    name = _renamed(name, pairs)
    for number in range(2):
        name = name.replace(f"down_blocks.{number}.resnets.", f"down.{number}.block.")
        name = name.replace(f"down_blocks.{number}.", f"down.{number}.")
        name = name.replace(f"up_blocks.{number}.resnets.", f"up.{1 - number}.block.")
        name = name.replace(f"up_blocks.{number}.", f"up.{1 - number}.")
    return name


def _vae_shape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    is_projection = "attentions" in name and name.endswith("weight") and tensor.ndim == 2
    return tensor[:, :, None, None] if is_projection else tensor


def save_lora(path: Path, factors: dict[str, Any]) -> Path:
    """A LoRA file of these tensors."""
    save_file({name: torch.as_tensor(tensor).clone() for name, tensor in factors.items()}, path)
    return path

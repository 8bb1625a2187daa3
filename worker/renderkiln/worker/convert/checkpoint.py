"""Tells by the names and shapes in a safetensors file's header what it is: a checkpoint, or which other kind of file.

The names are those of the original Stable Diffusion, and of what else goes about in single files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import BadInputError, ModelLoadError, UnsupportedModelError

from .weights import read_header

_UNET = "model.diffusion_model.input_blocks."
_FIRST_LAYER = f"{_UNET}0.0.weight"
#: Its width tells Stable Diffusion 1 from 2; that of XL has no attention here.
_CROSS_ATTENTION = f"{_UNET}2.1.transformer_blocks.0.attn2.to_k.weight"
_XL_TEXT_ENCODERS = ("conditioner.embedders.0.", "conditioner.embedders.1.")
#: Where a checkpoint's small files are to be had, by its kind and its UNet's input channels: 9 are for inpainting.
_REPOSITORIES = {
    ("sd1", 4): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ("sd1", 9): "stable-diffusion-v1-5/stable-diffusion-inpainting",
    ("sd2", 4): "stabilityai/stable-diffusion-2-1",
    ("sd2", 9): "stabilityai/stable-diffusion-2-inpainting",
    ("sdxl", 4): "stabilityai/stable-diffusion-xl-base-1.0",
    ("sdxl", 9): "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
}
#: UNets in the original layout that take something else than latents, or latents and a mask.
_OTHER_INPUTS = {
    5: "a depth-to-image model (5 input channels)",
    7: "an upscaler (7 input channels)",
    8: "an InstructPix2Pix model (8 input channels)",
}
#: Tensors that some checkpoints of XL are marked with, as their schedule is not that of XL base.
_OTHER_SCHEDULES = {"v_pred": "v-prediction", "edm_mean": "EDM's schedule"}
_BESIDE = "and as MODEL the model that it is for"
_AS_FOLDER = f"as a folder in diffusers' layout, {_BESIDE}"
#: What the name of some tensor begins with, in the order of asking: a LoRA of Flux is a LoRA first.
_OTHER_KINDS = {
    r"lora_|.*[._]lora[._]|.*\.(hada|lokr)_w": f"a LoRA; give it with --lora, {_BESIDE}",
    r"control_model\.|controlnet_|input_hint_block\.": f"a ControlNet; give it with --controlnet, {_AS_FOLDER}",
    r"emb_params$|clip_[lg]$": "an embedding of textual inversion, and no model",
    r".*\bmotion_modules\.": "a motion module of AnimateDiff",
    r"(model\.diffusion_model\.)?joint_blocks\.": "Stable Diffusion 3",
    r"(model\.diffusion_model\.)?(double_blocks|single_(transformer_)?blocks|single_stream)": "Flux",
    r"model\.diffusion_model\.": "a model of another architecture",
    r"(down_blocks|mid_block|up_blocks)\.": "a UNet alone; give the whole model's folder, which has a model_index.json",
    r"(first_stage_model\.)?(en|de)coder\.(conv_in|mid|up|down)": f"a VAE; give it with --custom-vae, {_AS_FOLDER}",
    r"cond_stage_model\.|(.*\.)?text_model\.": "a text encoder alone",
}


def refuse_other_kinds(path: Path, header: Mapping[str, Any]) -> None:
    """Raises UnsupportedModelError, or ModelLoadError, if a file is no checkpoint that can be converted."""
    kind = _other_kind(header)
    if kind is not None:
        raise UnsupportedModelError(
            f"{path} is {kind}. What can be converted from one file are checkpoints of Stable Diffusion 1, 2 and XL"
        )
    if not any(name.startswith(_UNET) for name in header):
        raise ModelLoadError(f"{path} holds {len(header)} tensors, and none of them is named as a checkpoint's are")


def repository_of(path: Path, header: Mapping[str, Any]) -> str:
    """The repository of the Hub that has the small files of a checkpoint.

    Raises:
        BadInputError: there is none whose files would surely fit.
    """
    schedule = next((what for name, what in _OTHER_SCHEDULES.items() if name in header), None)
    if schedule is not None:
        raise BadInputError(
            f"{path} was trained with {schedule}, which a checkpoint file has no settings of; give a diffusers folder "
            "that has them with --config"
        )
    if any(name.startswith(_XL_TEXT_ENCODERS[1]) for name in header):
        kind = "sdxl"
    elif _CROSS_ATTENTION in header:
        kind = "sd2" if header[_CROSS_ATTENTION]["shape"][-1] == 1024 else "sd1"
    else:
        raise BadInputError(
            f"{path} is a checkpoint of no kind whose settings are known; give a diffusers folder that has them with "
            "--config"
        )
    return _REPOSITORIES[kind, _input_channels(header)]


def check_fits(path: Path, unet: Mapping[str, Any]) -> None:
    """Raises BadInputError if a checkpoint's UNet takes other inputs than a UNet's config says."""
    channels, wanted = _input_channels(read_header(path)), unet.get("in_channels", 4)
    if channels != wanted:
        raise BadInputError(
            f"the UNet in {path} takes {channels} channels, and by the config {wanted}. An inpainting model takes 9, "
            "others 4; give the diffusers folder of a model of the same kind with --config"
        )


def _other_kind(header: Mapping[str, Any]) -> str | None:
    if not any(name.startswith(_UNET) for name in header) or any(name.startswith("control_model.") for name in header):
        matches = (kind for start, kind in _OTHER_KINDS.items() if any(re.match(start, name) for name in header))
        return next(matches, None)
    if any(".time_stack." in name for name in header):
        return "Stable Video Diffusion"
    channels = _input_channels(header)
    if channels not in (4, 9):
        return _OTHER_INPUTS.get(channels, f"a model of {channels} input channels")
    first, second = (any(name.startswith(each) for name in header) for each in _XL_TEXT_ENCODERS)
    if first and not second:
        return (
            "the refiner of Stable Diffusion XL, which is converted from a folder in diffusers' layout, or from the "
            "Hub: stabilityai/stable-diffusion-xl-refiner-1.0"
        )
    return None


def _input_channels(header: Mapping[str, Any]) -> int:
    shape = header.get(_FIRST_LAYER, {}).get("shape", ())
    return int(shape[1]) if len(shape) == 4 else 4

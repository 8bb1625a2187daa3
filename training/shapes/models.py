"""The parts of the model: their sizes, and the folder that diffusers loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizer import MAX_LENGTH, build_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 128

# The linear schedule all but ends in pure noise (the signal's share at the last step is 0.0063), so a
# picture's colours cannot leak into its start; and, unlike a rescaled schedule that ends at exactly
# zero, every scheduler of diffusers can run it.
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}


def build_unet() -> UNet2DConditionModel:
    """The denoiser, untrained."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(80, 112, 144),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, untrained."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_scheduler() -> DPMSolverMultistepScheduler:
    """The scheduler that the model comes with."""
    return DPMSolverMultistepScheduler(**NOISE_SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)


def assemble(
    vae: AutoencoderKL | Path,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> StableDiffusionPipeline:
    """The parts as a pipeline; the autoencoder may be a folder."""
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(vae) if isinstance(vae, Path) else vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def forget_origin(folder: Path) -> None:
    """Take out of the configs where on the training machine a part was loaded from."""
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the model folder in half precision, replacing the parts of one that is there."""
    pipeline.to(torch.float16)
    for part in ("vae", "unet", "text_encoder", "tokenizer", "scheduler"):
        shutil.rmtree(folder / part, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    # vocab.json and merges.txt beside tokenizer.json: what older tools, and converters, look for.
    path = folder / "tokenizer" / "tokenizer_config.json"
    config: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only"):
        config.pop(key, None)
    build_tokenizer(folder / "tokenizer")
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    forget_origin(folder)
    for file in folder.rglob("*"):  # safetensors are written for their owner alone
        file.chmod(0o755 if file.is_dir() else 0o644)

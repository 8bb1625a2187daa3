"""Makes tiny models with random weights, in diffusers' layout: milliseconds a picture, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from renderkiln.worker.engine.libraries import diffusers, transformers

WIDTH = 32
NATIVE = 32  # pixels: 16 latent pixels, two to one


def save_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer over lower-case letters, digits and spaces, without merges: one token a letter."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder)


def text_config(tokenizer: Any, width: int = WIDTH) -> Any:
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_unet(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": NATIVE // 2,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return diffusers.UNet2DConditionModel(**{**settings, **changes})


def make_vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=NATIVE,
    )


def make_safety_checker(threshold: float) -> Any:
    """Lets a picture pass unless its likeness to some concept (-1 … 1) is above the threshold."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "projection_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    kind = diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker
    checker = kind(transformers.CLIPConfig(vision_config=vision, projection_dim=16))
    with torch.no_grad():
        checker.concept_embeds_weights.fill_(threshold)
        checker.special_care_embeds_weights.fill_(threshold)
    return checker


def make_scheduler() -> Any:
    """As Stable Diffusion 1.5 comes."""
    return diffusers.PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        num_train_timesteps=1000,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def save_sd(
    folder: Path,
    *,
    seed: int = 0,
    scheduler: Any = None,
    threshold: float | None = None,
    unet: dict[str, Any] | None = None,
    **save: Any,
) -> Path:
    """A tiny Stable Diffusion; with a safety checker if a threshold is given."""
    torch.manual_seed(seed)
    tokenizer = save_tokenizer(folder / "tokenizer")
    checker = None if threshold is None else make_safety_checker(threshold)
    square = {"height": 32, "width": 32}
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=transformers.CLIPTextModel(text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=make_unet(**(unet or {})),
        scheduler=scheduler or make_scheduler(),
        safety_checker=checker,
        feature_extractor=None if checker is None else processor,
        requires_safety_checker=checker is not None,
    )
    pipeline.save_pretrained(folder, **save)
    return folder


def save_sdxl(folder: Path) -> Path:
    """A tiny Stable Diffusion XL."""
    torch.manual_seed(0)
    tokenizer = save_tokenizer(folder / "tokenizer")
    unet = make_unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        transformer_layers_per_block=(1, 1),
        use_linear_projection=True,
    )
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=make_vae(),
        text_encoder=transformers.CLIPTextModel(text_config(tokenizer)),
        text_encoder_2=transformers.CLIPTextModelWithProjection(text_config(tokenizer)),
        tokenizer=tokenizer,
        tokenizer_2=save_tokenizer(folder / "tokenizer_2"),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1
        ),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_controlnet(folder: Path, model: Path, *, seed: int = 3, size: tuple[int, ...] = (8, 16)) -> Path:
    """A ControlNet for a tiny model; its last layers, zero when training begins, hold something.

    Args:
        size: channels of what takes the picture in; each but the first halves it: two suit a VAE of two blocks.
    """
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet")
    controlnet = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=size)
    with torch.no_grad():
        for parameter in controlnet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    controlnet.save_pretrained(folder)
    return folder

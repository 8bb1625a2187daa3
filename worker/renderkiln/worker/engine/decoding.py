"""From latents to a picture: the last part of diffusers' pipelines, apart from the denoising before it.

So that the UNet can denoise all images of a job before the VAE is loaded, where both do not fit. The arithmetic is that
of `StableDiffusionPipeline.__call__` and `StableDiffusionXLPipeline.__call__`, after their loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def decode(pipeline: Any, latents: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, bool]:
    """The picture, (1, 3, H, W) in [0, 1], and whether the safety checker, if the pipeline has one, hid it.

    Args:
        latents: (1, 4, h, w), as the pipeline gives them with output_type "latent".
        dtype: in which the safety checker is handed the picture.
    """
    config = pipeline.vae.config
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None and hasattr(pipeline, "text_encoder_2"):  # SDXL's alone heed them
        latents = latents * _channels(std, latents) / config.scaling_factor + _channels(mean, latents)
    else:
        latents = latents / config.scaling_factor
    image = pipeline.vae.decode(latents, return_dict=False)[0]
    flags = None
    if getattr(pipeline, "safety_checker", None) is not None:
        image, flags = pipeline.run_safety_checker(image, pipeline._execution_device, dtype)
    hidden = bool(flags and flags[0])
    # What was hidden is in [0, 1] already.
    return pipeline.image_processor.postprocess(image, output_type="pt", do_denormalize=[not hidden]), hidden


def set_tiles(stage: Any, in_tiles: bool, sides: Sequence[int], *, latent: bool) -> bool:
    """Has a VAE work in tiles of half the size it was trained at, or in one piece; a converted one has no tiles.

    Args:
        sides: height and width of what it will be given, which may fit into one tile.
        latent: whether these are latent pixels.

    Returns:
        Whether it will be more than one tile.
    """
    if not hasattr(stage, "use_tiling"):
        return False
    stage.use_tiling = in_tiles
    size = stage.config.sample_size
    side: int = (size if isinstance(size, int) else min(size)) // 2
    stage.tile_sample_min_size = side
    stage.tile_latent_min_size = side // 2 ** (len(stage.config.block_out_channels) - 1)
    return in_tiles and max(sides) > (stage.tile_latent_min_size if latent else side)


def _channels(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)

"""The random numbers of an image, all from its own seed.

rng `torch`: a generator on the CPU, whatever the device, so that every device starts from the same noise;
diffusers draws all it needs from it. rng `numpy`: the first noise is numpy's, rounded to half precision, as
Apple's Core ML pipelines draw it; what a stochastic scheduler or the VAE draws later is from torch's
generator all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def generator(seed: int) -> torch.Generator:
    """The image's own generator, on the CPU. `seed`: 0 … 2**32 - 1."""
    return torch.Generator("cpu").manual_seed(seed)


def numpy_noise(seed: int, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Apple's first noise, not yet multiplied by the scheduler's `init_noise_sigma`, which the pipeline does.

    Args:
        seed: 0 … 2**32 - 1.
        shape: (1, 4, h, w) in latent pixels.
    """
    drawn = np.random.RandomState(seed).randn(*shape).astype(np.float16)
    return torch.from_numpy(drawn).to(device=device, dtype=dtype)


def use_noise(scheduler: Any, noise: torch.Tensor) -> None:
    """Makes a scheduler mix this noise into an init image instead of the noise that the pipeline drew.

    diffusers' image-to-image and inpainting pipelines take no noise from outside, but all that they draw
    passes through the scheduler's `add_noise` on its way to the latents; and a scheduler, here, serves one
    image only.
    """
    add_noise = scheduler.add_noise
    scheduler.add_noise = lambda original, _drawn, timesteps: add_noise(original, noise, timesteps)

"""Draws the training set once and keeps its latents, so that the UNet's training never waits for them."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from data import SIDE, encode, random_drawings, to_tensor
from diffusers import AutoencoderKL
from torch import Tensor

from renderkiln.worker.demo.drawing import draw

log = logging.getLogger("latents")


@dataclass
class LatentSet:
    """Latents of drawings (scaled as the UNet sees them), and what each drawing was."""

    latents: Tensor  # float16, [n, 4, 16, 16]
    drawings: Tensor  # uint8, [n, 5]: data.encode


@torch.no_grad()
def make_latents(work: Path, count: int, seed: int, batch: int = 64) -> None:
    """Encode `count` drawings with work/vae into work/latents.pt."""
    vae = AutoencoderKL.from_pretrained(work / "vae")
    vae.eval()
    rng = random.Random(seed)
    latents, drawings = [], []
    pending = list(random_drawings(count, seed))
    for start in range(0, count, batch):
        part = pending[start : start + batch]
        pictures = to_tensor([draw(drawing, SIDE, rng=rng) for drawing in part])
        with torch.autocast("cpu", torch.bfloat16):
            means = vae.encode(pictures).latent_dist.mean
        latents.append((means.float() * vae.config.scaling_factor).half())
        drawings.append(np.array([encode(drawing) for drawing in part], dtype=np.uint8))
        if start // batch % 100 == 0:
            log.info("%d of %d", start, count)
    result = LatentSet(torch.cat(latents), torch.from_numpy(np.concatenate(drawings)))
    values = result.latents.float()
    log.info("mean %s spread %s", values.mean(dim=(0, 2, 3)).tolist(), values.std(dim=(0, 2, 3)).tolist())
    torch.save({"latents": result.latents, "drawings": result.drawings}, work / "latents.pt")


def load_latents(work: Path) -> LatentSet:
    """The latents that `make_latents` wrote; shared between processes that map the same file."""
    state = torch.load(work / "latents.pt", weights_only=True, mmap=True)
    return LatentSet(state["latents"], state["drawings"])

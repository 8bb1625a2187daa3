"""Trains the autoencoder, and scales its latents so that every channel has mean 0 and a chosen spread."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from data import to_tensor, vae_batches
from diffusers import AutoencoderKL
from PIL import Image
from schedule import Clock, Ema, save_atomically
from torch import Tensor
from torch.nn import functional

log = logging.getLogger("vae")

LATENT_STD = 2.0  # together with scaling_factor 0.5: what the UNet sees has spread 1
KL_WEIGHT = 1e-5
EDGE_WEIGHT = 1.5
NOISE = 0.03  # spread of noise on latents in training: the decoder learns to forgive the UNet


def build_vae() -> AutoencoderKL:
    """The autoencoder, untrained: 64x64 pixels to 16x16 latents of 4 channels."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
        scaling_factor=1 / LATENT_STD,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def edges(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbours, across and down."""
    return picture[..., :, 1:] - picture[..., :, :-1], picture[..., 1:, :] - picture[..., :-1, :]


def reconstruction_loss(got: Tensor, wanted: Tensor) -> Tensor:
    """L1 on pixels and on edges; the second keeps outlines crisp."""
    loss = functional.l1_loss(got, wanted)
    for mine, theirs in zip(edges(got), edges(wanted), strict=True):
        loss = loss + EDGE_WEIGHT * functional.l1_loss(mine, theirs)
    return loss


def train_vae(work: Path, minutes: float, batch: int, seed: int) -> None:
    """Train for `minutes` (resuming where a checkpoint is), then write the scaled model to work/vae."""
    torch.manual_seed(seed)
    vae = build_vae()
    log.info("%d parameters", sum(p.numel() for p in vae.parameters()))
    _fit(vae, work / "vae.pt", Clock(minutes, peak=1.2e-3, warmup_steps=200), batch, seed)
    pictures = torch.cat([some for some, _ in zip(vae_batches(64, seed + 1), range(16), strict=False)])
    normalise(vae.eval(), pictures)
    finish(vae, work, seed)


def refine_decoder(work: Path, minutes: float, batch: int, seed: int) -> None:
    """Train only the decoder of work/vae for `minutes` more.

    Latents stay what they are, so a UNet that was trained on them goes on working, and pictures get crisper.
    """
    torch.manual_seed(seed + 1)
    vae = AutoencoderKL.from_pretrained(work / "vae")
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    _fit(vae, work / "decoder.pt", Clock(minutes, peak=8e-4, warmup_steps=100), batch, seed + 1)
    finish(vae, work, seed)


def _fit(vae: AutoencoderKL, checkpoint: Path, clock: Clock, batch: int, seed: int) -> None:
    """Train what is not frozen until the clock is over; the model ends up with averaged weights."""
    parameters = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = Ema(vae, 0.998)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load_state_dict(state["ema"])
        clock.resume(state["clock"])

    def save() -> None:
        state = {"model": vae.state_dict(), "optimizer": optimizer.state_dict()}
        save_atomically(state | {"ema": ema.state_dict(), "clock": clock.state_dict()}, checkpoint)

    batches = vae_batches(batch, seed + clock.step)
    last_save = time.monotonic()
    while not clock.is_over:
        pictures = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = clock.rate()
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pictures).latent_dist.mean
            spread = latents.detach().float().std()
            decoded = vae.decode(latents + NOISE * spread * torch.randn_like(latents)).sample
        loss = reconstruction_loss(decoded.float(), pictures)
        if latents.requires_grad:
            # Only the means are pulled towards a unit ball: nothing here ever samples the posterior.
            loss = loss + KL_WEIGHT * 0.5 * latents.float().square().sum(dim=(1, 2, 3)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(vae, clock.step)
        clock.tick()
        if clock.step % 100 == 0:
            log.info("step %d loss %.4f spread %.2f %s", clock.step, loss.item(), spread.item(), clock)
        if time.monotonic() - last_save > 120:
            last_save = time.monotonic()
            save()
    save()
    ema.copy_to(vae)


@torch.no_grad()
def finish(vae: AutoencoderKL, work: Path, seed: int) -> None:
    """Write the model, and log how well pictures survive it."""
    vae.eval()
    pictures = torch.cat([some for some, _ in zip(vae_batches(64, seed + 1), range(4), strict=False)])
    vae.save_pretrained(work / "vae", safe_serialization=True)
    decoded = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    error = (decoded - pictures).square().mean(dim=(1, 2, 3)) / 4
    log.info("reconstruction: PSNR %.1f dB (mean of 256 pictures)", (-10 * error.log10()).mean().item())
    rows = torch.cat([torch.cat(list(row[:16]), dim=2) for row in (pictures, decoded)], dim=1)
    array = ((rows.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
    picture = Image.fromarray(array)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(work / "vae.png")


@torch.no_grad()
def normalise(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold a shift and a scale into the 1x1 convolutions around the latents.

    Afterwards each latent channel has mean 0 and spread LATENT_STD over `pictures`, and pictures come
    out as before: what quant_conv does last, post_quant_conv undoes first.
    """
    moments = torch.cat([vae._encode(part) for part in pictures.split(64)])
    channels = moments.shape[1] // 2
    means = moments[:, :channels]
    mean = means.mean(dim=(0, 2, 3))
    scale = LATENT_STD / means.std(dim=(0, 2, 3))
    first, last = vae.quant_conv, vae.post_quant_conv
    # Undo on the way out: x -> x / scale + mean, then the old convolution.
    last.bias += last.weight[:, :, 0, 0] @ mean
    last.weight /= scale.view(1, -1, 1, 1)
    # On the way in: mean -> (mean - m) * scale. The log variance follows, then is made so small that
    # sampling from the posterior (as pipelines do) adds next to nothing.
    first.weight[:channels] *= scale.view(-1, 1, 1, 1)
    first.bias[:channels] = (first.bias[:channels] - mean) * scale
    first.weight[channels:] = 0
    first.bias[channels:] = 2 * torch.log(NOISE * LATENT_STD * torch.ones(channels))


__all__ = ["build_vae", "to_tensor", "train_vae"]

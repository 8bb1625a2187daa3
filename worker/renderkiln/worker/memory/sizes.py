"""What stages and the process around them are expected to take, before anything was measured."""

from __future__ import annotations

#: Bytes of a renderer that has loaded nothing: Python, torch, diffusers and transformers.
EMPTY_RENDERER = 450_000_000
#: Under which name, among a model's stages, is kept what the renderer was seen to hold beside them.
RENDERER = "renderer"
#: Bytes a second at which a stage is thought to load.
LOAD_RATE = 1e9
#: Bytes beside the weights for each pixel of the image, at 16 bits: the UNet's of two latents at once (guidance).
#: Measured with Stable Diffusion 1.5's geometry on a CPU; see benchmarks/RESULTS.md.
_BYTES_PER_PIXEL = {"unet": 1_300, "controlnet": 1_000, "vae_decoder": 6_300, "vae_encoder": 3_200}
#: Beside that, as a part of the weights: copies in the order that the kernels want.
_PART_OF_WEIGHTS = 0.1


def expected_working(stage: str, size_bytes: int, pixels: int) -> int:
    """Bytes that a stage takes beside its weights while it is at work.

    Args:
        pixels: of the image; 0 where that is not known yet.
    """
    kind = "unet" if stage == "control-unet" else "controlnet" if stage.startswith("controlnet") else stage
    return int(size_bytes * _PART_OF_WEIGHTS) + _BYTES_PER_PIXEL.get(kind, 0) * pixels


def default_budget(total_bytes: int) -> int:
    """What a renderer may take where nobody said: what is left when the system and others have a quarter, or 2 GB.

    At least half of all.
    """
    return max(total_bytes - max(total_bytes // 4, 2 * 10**9), total_bytes // 2)

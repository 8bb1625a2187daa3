"""What conversion costs in pictures: `shapes` through its converted stages, each attention variant, 16 and 6 bits.

    python -m benchmarks.converted_shapes [--count 100]

diffusers' own pipeline runs with each model's forward pass replaced by the reference runtime's `predict`. Pictures are
judged, and compared with those that the torch models make of the same prompts and seeds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from renderkiln.worker.demo import shapes_path
from renderkiln.worker.demo.judge import matches, tally
from renderkiln.worker.demo.vocabulary import held_out_drawings, prompt_of
from renderkiln.worker.runtimes import manifest
from renderkiln.worker.runtimes.base import Array
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .report import machine

VARIANTS = ("original", "split-einsum", "split-einsum-v2")
BITS = (16, 6)
STEPS, GUIDANCE = 20, 7.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="held-out prompts")
    args = parser.parse_args()
    drawings = held_out_drawings(args.count)
    prompts = [prompt_of(drawing) for drawing in drawings]
    print(machine())
    wanted = render(load_pipeline(), prompts)
    print(f"{'torch':24} {tally([matches(d, image) for d, image in zip(drawings, wanted, strict=True)])}", flush=True)
    for variant in VARIANTS:
        for bits in BITS:
            with tempfile.TemporaryDirectory() as folder:
                convert(Path(folder), variant, bits)
                pictures = render(over_converted_stages(Path(folder)), prompts)
            score = tally([matches(d, image) for d, image in zip(drawings, pictures, strict=True)])
            found = [psnr(a, b) for a, b in zip(pictures, wanted, strict=True)]
            middle, low = statistics.median(found), min(found)
            print(f"{variant:16} {bits:2} bits {score}; PSNR {middle:.1f} dB (worst {low:.1f})", flush=True)


def load_pipeline() -> Any:
    pipeline = StableDiffusionPipeline.from_pretrained(shapes_path())
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def convert(folder: Path, variant: str, bits: int) -> None:
    command = [sys.executable, "-m", "renderkiln.producer", "convert", "shapes", "-o", str(folder)]
    command += ["--attention", variant, "--stages", "text_encoder,unet,vae_decoder"]
    command += ["--nbits", str(bits)] if bits < 16 else []
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def over_converted_stages(folder: Path) -> Any:
    """The pipeline of `shapes`, its three models replaced by what was converted."""
    stages = manifest.load(folder).stages
    runtimes = {name: ReferenceRuntime.load(folder / stage.packages[0].file) for name, stage in stages.items()}

    def run(stage: str, output: str, **inputs: torch.Tensor) -> torch.Tensor:
        runtime = runtimes[stage]
        arrays: dict[str, Array] = {
            name: value.numpy().astype(runtime.inputs[name].dtype) for name, value in inputs.items()
        }
        return torch.from_numpy(runtime.predict(arrays)[output])

    def encode(input_ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (run("text_encoder", "last_hidden_state", input_ids=input_ids),)

    def denoise(sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: Any, **_: Any) -> Any:
        context = encoder_hidden_states.transpose(1, 2).unsqueeze(2)
        times = timestep.expand(len(sample)).float()
        return (run("unet", "noise_pred", sample=sample, timestep=times, encoder_hidden_states=context),)

    def decode(latents: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (run("vae_decoder", "image", z=latents),)

    pipeline = load_pipeline()
    pipeline.text_encoder.forward, pipeline.unet.forward, pipeline.vae.decode = encode, denoise, decode
    return pipeline


def render(pipeline: Any, prompts: list[str]) -> list[Image.Image]:
    return [
        pipeline(
            prompt,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(1000 + index),
        ).images[0]
        for index, prompt in enumerate(prompts)
    ]


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Of two 8-bit pictures, in decibels; infinite when they are equal."""
    error = float(np.mean((np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


if __name__ == "__main__":
    main()

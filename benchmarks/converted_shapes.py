"""What conversion costs in pictures: `shapes` on the Core ML engine, each attention variant, 16 and 6 bits.

    python -m benchmarks.converted_shapes [--count 100]

The engine runs on the reference runtime, whose arithmetic is float32. Pictures are judged, and compared with those that
the torch engine makes of the same prompts and seeds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from renderkiln.home.folder import DataFolder
from renderkiln.schema import JobOptions, RenderSpec, make_job
from renderkiln.worker.demo import shapes_path
from renderkiln.worker.demo.judge import matches, tally
from renderkiln.worker.demo.vocabulary import held_out_drawings, prompt_of
from renderkiln.worker.engine.base import Engine
from renderkiln.worker.engine.making import EngineChoice, make_engine
from renderkiln.worker.models.choosing import Wishes

from .report import machine

VARIANTS = ("original", "split-einsum", "split-einsum-v2")
BITS = (16, 6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="held-out prompts")
    args = parser.parse_args()
    drawings = held_out_drawings(args.count)
    prompts = [prompt_of(drawing) for drawing in drawings]
    print(machine())
    wanted = render(engine_for(shapes_path(), "torch"), prompts)
    print(f"{'torch':24} {tally([matches(d, image) for d, image in zip(drawings, wanted, strict=True)])}", flush=True)
    for variant in VARIANTS:
        for bits in BITS:
            with tempfile.TemporaryDirectory() as folder:
                convert(Path(folder), "--attention", variant, *(["--nbits", str(bits)] if bits < 16 else []))
                pictures = render(engine_for(Path(folder), "coreml"), prompts)
            score = tally([matches(d, image) for d, image in zip(drawings, pictures, strict=True)])
            found = [psnr(a, b) for a, b in zip(pictures, wanted, strict=True)]
            middle, low = statistics.median(found), min(found)
            print(f"{variant:16} {bits:2} bits {score}; PSNR {middle:.1f} dB (worst {low:.1f})", flush=True)


def engine_for(folder: Path, kind: str) -> Engine:
    choice = EngineChoice(Wishes(engine=kind), device="cpu", dtype="float32")
    return make_engine(choice, lambda _name, _revision: folder, DataFolder(folder))


def convert(folder: Path, *flags: str) -> None:
    """What a picture of a prompt takes, without the check."""
    command = [sys.executable, "-m", "renderkiln.producer", "convert", "shapes", "-o", str(folder), *flags]
    command += ["--stages", "text_encoder,unet,vae_decoder", "--no-check"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def render(engine: Engine, prompts: list[str]) -> list[Image.Image]:
    """A picture for each prompt, at the spec's defaults."""
    return [render_one(engine, prompt, index, num_inference_steps=20) for index, prompt in enumerate(prompts)]


def render_one(engine: Engine, prompt: str, index: int, num_inference_steps: int) -> Image.Image:
    """The picture of the prompt of that number."""
    spec = RenderSpec(prompt=prompt, seed=1000 + index, num_inference_steps=num_inference_steps)
    [image] = engine.render(make_job(spec, JobOptions(), batch="benchmark", index=index), {}, on_step=lambda *_: None)
    return Image.frombytes("RGB", (image.width, image.height), image.rgb)


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Of two 8-bit pictures, in decibels; infinite when they are equal."""
    error = float(np.mean((np.asarray(a, dtype=float) - np.asarray(b, dtype=float)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


if __name__ == "__main__":
    main()

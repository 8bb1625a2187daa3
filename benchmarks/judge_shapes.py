"""Lets the judge look at what the demo model draws: text to image, image to image and inpainting.

    python benchmarks/judge_shapes.py                      # 200 held-out prompts at the defaults
    python benchmarks/judge_shapes.py --guidance 3 5 7.5 --scheduler dpm++ ddim --json scores.json
    python benchmarks/judge_shapes.py --only img2img inpaint

Plain diffusers pipelines, no renderkiln engine: what is measured is the model.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from renderkiln.worker.demo import shapes_path
from renderkiln.worker.demo.drawing import draw
from renderkiln.worker.demo.judge import WHOLE, Box, Match, matches, tally
from renderkiln.worker.demo.vocabulary import COLORS, Drawing, held_out_drawings, prompt_of

SIDE = 64
LEFT: Box = (0.0, 0.0, 0.5, 1.0)
RIGHT: Box = (0.5, 0.0, 1.0, 1.0)

SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "dpm++": (DPMSolverMultistepScheduler, {}),
    "dpm++ karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    # Both clip latents to [-1, 1] unless told not to, as if they were pixels.
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler a": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),
}


@dataclass(frozen=True)
class Case:
    """One picture to change: what it is, what is asked for, and where to look."""

    start: Image.Image
    wanted: Drawing
    mask: Image.Image | None = None
    look_at: Box = WHOLE


def use_scheduler(pipeline: StableDiffusionPipeline, name: str) -> None:
    """Give the pipeline a scheduler, built from the model's own configuration."""
    cls, options = SCHEDULERS[name]
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **options)


def seeds(start: int, count: int) -> list[torch.Generator]:
    """A generator for each picture, so that a picture does not depend on its batch."""
    return [torch.Generator().manual_seed(start + index) for index in range(count)]


def text_to_image(
    pipeline: StableDiffusionPipeline, wanted: list[Drawing], guidance: float, steps: int, batch: int
) -> list[Match]:
    """Render every prompt and judge the pictures."""
    found: list[Match] = []
    for start in range(0, len(wanted), batch):
        part = wanted[start : start + batch]
        pictures = pipeline(
            [prompt_of(drawing) for drawing in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=seeds(1000 + start, len(part)),
        ).images
        found += [matches(drawing, picture) for drawing, picture in zip(part, pictures, strict=True)]
    return found


def change_cases() -> list[Case]:
    """Image to image: another shape in other colours at the same place and size; and a plain ground."""
    wanted = [Drawing(d.shape, d.color, d.background, s, p) for d, s, p in _spread(held_out_drawings(12, seed=7))]
    starts = _spread(held_out_drawings(12, seed=8))
    cases = []
    for index, (goal, (other, size, position)) in enumerate(zip(wanted, starts, strict=True)):
        if index % 4 == 3:
            picture = Image.new("RGB", (SIDE, SIDE), COLORS[str(goal.background)])
        else:
            picture = draw(Drawing(other.shape, other.color, other.background, size, position), SIDE)
        cases.append(Case(picture, goal))
    return cases


def _spread(drawings: list[Drawing]) -> list[tuple[Drawing, str, str]]:
    """Drawings with a size and a position each; the same ones for every list of that length."""
    sizes, positions = ("medium", "large"), ("left", "center", "right", "top", "bottom")
    return [
        (drawing, sizes[index % len(sizes)], positions[index % len(positions)])
        for index, drawing in enumerate(drawings)
    ]


def inpaint_cases() -> list[Case]:
    """Inpainting: the left half is drawn anew; the right half is plain, or holds another shape."""
    mask = Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    cases = []
    for index, goal in enumerate(held_out_drawings(12, seed=9)):
        wanted = Drawing(goal.shape, goal.color, goal.background, "medium" if index % 2 else "small", "left")
        picture = Image.new("RGB", (SIDE, SIDE), COLORS[str(goal.background)])
        if index % 3 == 2:
            other = "square" if goal.shape != "square" else "circle"
            picture = draw(Drawing(other, goal.color, goal.background, "small", "right"), SIDE)
        cases.append(Case(picture, wanted, mask, LEFT))
    return cases


def change(pipeline: StableDiffusionPipeline, cases: list[Case], guidance: float, steps: int) -> list[Match]:
    """Run image to image at strength 0.8 and judge."""
    changer = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    changer.set_progress_bar_config(disable=True)
    pictures = changer(
        [prompt_of(case.wanted) for case in cases],
        image=[case.start for case in cases],
        strength=0.8,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=seeds(2000, len(cases)),
    ).images
    return [matches(case.wanted, picture) for case, picture in zip(cases, pictures, strict=True)]


def fill(
    pipeline: StableDiffusionPipeline, cases: list[Case], guidance: float, steps: int
) -> tuple[list[Match], float]:
    """Run inpainting, put the known part back on top, and judge the part that was masked.

    Also says by how much (0..255, on average) the known part had moved before it was put back.
    """
    filler = StableDiffusionInpaintPipeline(**pipeline.components, requires_safety_checker=False)
    filler.set_progress_bar_config(disable=True)
    pictures = filler(
        [prompt_of(case.wanted) for case in cases],
        image=[case.start for case in cases],
        mask_image=[case.mask for case in cases],
        height=SIDE,
        width=SIDE,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=seeds(3000, len(cases)),
    ).images
    found, moved = [], []
    for case, picture in zip(cases, pictures, strict=True):
        right = np.s_[:, SIDE // 2 :]
        known = np.asarray(case.start, dtype=float)[right]
        moved.append(float(np.abs(np.asarray(picture, dtype=float)[right] - known).mean()))
        whole = filler.image_processor.apply_overlay(case.mask, case.start, picture)
        assert (np.asarray(whole.convert("RGB"))[right] == known).all(), "the known half must not change"
        found.append(matches(case.wanted, whole, case.look_at))
    return found, sum(moved) / len(moved)


def main() -> None:
    """Measure what the command line asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=shapes_path())
    parser.add_argument("--count", type=int, default=200, help="held-out prompts")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=[7.5])
    parser.add_argument("--scheduler", nargs="+", default=["dpm++"], choices=list(SCHEDULERS))
    parser.add_argument("--only", nargs="+", default=["txt2img", "img2img", "inpaint"])
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the scores to this file")
    args = parser.parse_args()

    pipeline = StableDiffusionPipeline.from_pretrained(args.model)
    pipeline.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    rows = []
    for name in args.scheduler:
        use_scheduler(pipeline, name)
        for guidance in args.guidance:
            for kind in args.only:
                start, extra = time.perf_counter(), {}
                if kind == "txt2img":
                    wanted = held_out_drawings(args.count)
                    found = text_to_image(pipeline, wanted, guidance, args.steps, args.batch)
                elif kind == "img2img":
                    found = change(pipeline, change_cases(), guidance, args.steps)
                else:
                    found, moved = fill(pipeline, inpaint_cases(), guidance, args.steps)
                    extra = {"known_part_moved": moved}
                result = tally(found)
                seconds = (time.perf_counter() - start) / result.n
                print(f"{kind:8} {name:12} guidance {guidance:4} {result}; {seconds:.2f} s each", flush=True)
                rows.append(
                    {
                        "kind": kind,
                        "scheduler": name,
                        "guidance": guidance,
                        "steps": args.steps,
                        "seconds": seconds,
                    }
                    | result.as_dict()
                    | extra
                )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

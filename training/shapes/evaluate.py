"""Renders prompts with diffusers and lays the pictures out for people and for the judge."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from renderkiln.worker.demo.judge import score
from renderkiln.worker.demo.vocabulary import held_out_prompts

log = logging.getLogger("evaluate")

STEPS = 20
GUIDANCE = 7.5


def render(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    seed: int = 1000,
    batch: int = 20,
) -> list[Image.Image]:
    """One picture for each prompt; picture i starts from seed + i, whatever the batch."""
    pipeline.set_progress_bar_config(disable=True)
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + index) for index in range(len(part))]
        pictures += pipeline(part, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images
    return pictures


def contact_sheet(prompts: list[str], pictures: list[Image.Image], columns: int = 6, zoom: int = 2) -> Image.Image:
    """The pictures in rows, enlarged, with their prompts below."""
    side = pictures[0].width * zoom
    gap, caption = 10, 60
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + caption) + gap), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for index, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        x = gap + index % columns * (side + gap)
        y = gap + index // columns * (side + caption)
        sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))
        pen.multiline_text((x, y + side + 3), wrap(prompt, side // 6), fill=(40, 40, 40), spacing=2)
    return sheet


def wrap(text: str, width: int) -> str:
    """The text in lines of at most `width` letters."""
    lines = [""]
    for token in text.split():
        if len(lines[-1]) + len(token) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {token}".strip()
    return "\n".join(lines)


def evaluate(model: Path, count: int, sheet: Path | None) -> None:
    """Score a model folder on held-out prompts at the defaults; with `sheet`, draw the first 24."""
    pipeline = StableDiffusionPipeline.from_pretrained(model).to(torch.float32)
    prompts = held_out_prompts(count)
    pictures = render(pipeline, prompts)
    log.info("%s", score(zip(prompts, pictures, strict=True)))
    if sheet:
        save_small(contact_sheet(prompts[:24], pictures[:24]), sheet)


def save_small(picture: Image.Image, path: Path) -> None:
    """Save a contact sheet with few colours: it is flat, and repositories stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)

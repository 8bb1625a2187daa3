"""A worker renders a list with the Core ML engine: every kind of job, on every kind of converted model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from renderkiln.home.settings import Settings
from renderkiln.worker.demo.drawing import draw
from renderkiln.worker.demo.judge import judge
from renderkiln.worker.demo.vocabulary import Drawing

from .conftest import Library

# Conversions, and a renderer that loads four models one after another.
pytestmark = pytest.mark.timeout(900)


def environment(settings: Settings) -> dict[str, str]:
    assert settings.redis_url is not None
    return os.environ | {"RENDERKILN_REDIS_URL": settings.redis_url.get_secret_value()}


def run(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "renderkiln.producer", *arguments, "--data-dir", str(settings.data_dir)]
    return subprocess.run(command, env=environment(settings), cwd=settings.data_dir, capture_output=True, text=True)


@pytest.fixture
def machine(settings: Settings, library: Library) -> Settings:
    """A machine whose models are all converted."""
    models = settings.data_dir / "models"
    models.mkdir(parents=True)
    for name in ("shapes-small", "tiny-controls", "xl-pictures", "tiny-sizes"):
        (models / name).symlink_to(library.converted(name))
    return settings


def test_a_list_of_every_kind(machine: Settings, tmp_path: Path) -> None:
    red_circle = "a large red circle in the center on a white background"
    draw(Drawing("circle", "blue", "white", "large", "center")).save(tmp_path / "blue.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "right-half.png")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    small, xl, controlled = ({"model": name} for name in ("shapes-small", "xl-pictures", "tiny-controls"))
    few = {"num_inference_steps": 4}
    edges = {"model": "edges", "image": "noise.png"}
    lines: list[dict[str, Any]] = [
        {"prompt": red_circle, **small},
        {"prompt": red_circle, **small, "init_image": "blue.png", "strength": 0.9},
        {"prompt": red_circle, **small, "init_image": "blue.png", "mask_image": "right-half.png", "strength": 1.0},
        {"prompt": "a hat", **xl, **few},
        {"prompt": "a hat", **xl, **few, "init_image": "noise.png", "mask_image": "right-half.png"},
        {"prompt": "a hat", **controlled, **few, "controlnets": [edges]},
        {"prompt": "a hat", **controlled, **few, "controlnets": [edges], "init_image": "noise.png"},
        {"prompt": "a hat", "model": "tiny-sizes", **few, "width": 48, "height": 32},
    ]
    prompts = tmp_path / "every-kind.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = tmp_path / "pictures"
    done = run(machine, "render", str(prompts), "--engine", "coreml", "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["finished"] is True
    pictures = [Image.open(job["images"][0]["url"]) for job in report["jobs"]]
    assert [picture.size for picture in pictures] == [(64, 64)] * 3 + [(32, 32)] * 4 + [(48, 32)]
    for picture in pictures:
        assert np.asarray(picture).std() > 3
    verdicts = [judge(picture) for picture in pictures[:2]]
    assert [(verdict.color, verdict.shape) for verdict in verdicts] == [("red", "circle")] * 2
    with Image.open(tmp_path / "blue.png") as before:
        assert np.array_equal(np.asarray(pictures[2])[:, :32], np.asarray(before.convert("RGB"))[:, :32])
    log = (machine.data_dir / "logs" / "worker.log").read_text()
    assert "engine coreml" in log
    assert "variant split-einsum" in log or "variant original" in log


def test_a_size_that_the_model_does_not_have_fails_with_those_that_it_has(machine: Settings, tmp_path: Path) -> None:
    out = str(tmp_path / "pictures")
    size = ["--width", "512", "--height", "512"]
    done = run(machine, "render", "a hat", "--model", "tiny-sizes", "--engine", "coreml", "--out", out, "--json", *size)
    assert done.returncode == 2
    assert "32 × 32, 48 × 32" in done.stderr
    assert not list(Path(out).rglob("*.png"))

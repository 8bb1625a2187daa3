"""A list of 60 prompts through the whole system against a bare diffusers loop that renders and saves the same images.

Both are warm and both run one after another in turn: queue, supervisor, renderer, ledger and checked files on the one
side, `pipeline(…).images[0].save(…)` in one process on the other. The pixels are compared at the end.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from PIL import Image

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.producer import RenderQueue

from .report import machine, ratio, spread

COUNT, ROUNDS, STEPS = 60, 3, 20
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond", "moon", "circle")
PROMPTS = [f"a {color} {shape} on a white background" for color in COLORS for shape in SHAPES]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(data_dir=folder / "data", out=str(folder / "ours"), device="cpu")
        server = EmbeddedServer(DataFolder(settings.data_dir))
        queue = RenderQueue(settings=settings)
        worker = _start_worker(settings)
        loop = _start_loop(folder / "bare", find_model(DataFolder(settings.data_dir), "shapes"))
        try:
            _ours(queue, 2, "warm-up")
            _bare(loop, 2)
            ours, bare, parts = [], [], []
            for round_number in range(ROUNDS):
                before = time.time()
                ours.append(_ours(queue, COUNT, f"round-{round_number}"))
                parts.append(_where_it_went(settings.data_dir / "ledger.db", before))
                bare.append(_bare(loop, COUNT))
            same = _same_pixels(folder / "ours", folder / "bare")
        finally:
            loop.stdin.close()  # type: ignore[union-attr]
            loop.wait()
            worker.terminate()
            worker.wait()
            queue.close()
            server.stop()
    print(machine())
    print(f"bare diffusers loop, {COUNT} images of {STEPS} steps: {spread(bare)}")
    print(f"renderkiln, whole system:                {spread(ours)}   {ratio(ours, bare)}")
    for part in parts[0]:
        values = [row[part] / COUNT * 1000 for row in parts]
        print(f"  per image, {part:<34} {spread(values, 'ms', 2)}")
    rest = [(a - sum(row.values())) / COUNT * 1000 for a, row in zip(ours, parts, strict=True)]
    print(f"  per image, {'queue, heartbeat, between jobs':<34} {spread(rest, 'ms', 2)}")
    print(f"  per image, {'bare loop':<34} {spread([b / COUNT * 1000 for b in bare], 'ms', 2)}")
    print(f"pixels equal to the bare loop's: {same} of {COUNT}")


def _start_worker(settings: Settings) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "renderkiln.producer", "worker", "--device", "cpu"]
    command += ["--data-dir", str(settings.data_dir), "--out", settings.out]
    with (settings.data_dir / "worker.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _ours(queue: RenderQueue, count: int, name: str) -> float:
    requests = [{"prompt": prompt, "seed": n, "num_inference_steps": STEPS} for n, prompt in enumerate(PROMPTS[:count])]
    began = time.perf_counter()
    batch = queue.submit_many(requests, name=name, again=True)
    results = list(queue.as_completed(batch, timeout=600))
    seconds = time.perf_counter() - began
    bad = [result for result in results if result.status.value != "finished"]
    if bad or len(results) != count:
        raise AssertionError(f"{len(results)} of {count} ended, {len(bad)} badly: {bad[:1]}")
    return seconds


def _where_it_went(ledger: Path, since: float) -> dict[str, float]:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(since))
    with sqlite3.connect(ledger) as connection:
        render, load, write = connection.execute(
            "SELECT sum(render_seconds), sum(load_seconds), sum(write_seconds) FROM attempts WHERE started_at >= ?",
            (stamp,),
        ).fetchone()
    connection.close()
    return {"rendering (renderer's clock)": render, "loading": load, "encoding, writing and recording": write}


def _start_loop(out: Path, model: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.whole_system", "--bare", str(out), str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _bare(loop: subprocess.Popen[str], count: int) -> float:
    assert loop.stdin is not None
    assert loop.stdout is not None
    print(count, file=loop.stdin, flush=True)
    return float(json.loads(loop.stdout.readline()))


def _bare_loop(out: Path, model: Path, orders: IO[str]) -> None:
    """The other contender, as its user would write it."""
    import torch
    from diffusers import StableDiffusionPipeline

    out.mkdir(parents=True)
    pipeline: Any = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for order in orders:
        began = time.perf_counter()
        for n, prompt in enumerate(PROMPTS[: int(order)]):
            generator = torch.Generator("cpu").manual_seed(n)
            image = pipeline(prompt, num_inference_steps=STEPS, guidance_scale=7.5, generator=generator).images[0]
            image.save(out / f"{n:05d}.png")
        print(json.dumps(time.perf_counter() - began), flush=True)


def _same_pixels(ours: Path, bare: Path) -> int:
    newest = max((path for path in ours.iterdir() if path.name.startswith("round-")), key=os.path.getmtime)
    pairs = zip(sorted(newest.glob("0*.png")), sorted(bare.glob("*.png")), strict=True)
    return sum(Image.open(a).convert("RGB").tobytes() == Image.open(b).convert("RGB").tobytes() for a, b in pairs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bare"]:
        _bare_loop(Path(sys.argv[2]), Path(sys.argv[3]), sys.stdin)
    else:
        main()

"""`renderkiln render`, as a person at a terminal runs it: all of it real, Ctrl-C included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from renderkiln.home.pictures.read import read_metadata
from renderkiln.worker.demo.judge import judge

from .conftest import House


def _command(house: House, *arguments: str) -> list[str]:
    own = [] if arguments[0] == "show" else ["--data-dir", str(house.settings.data_dir)]  # `show` needs no machine
    return [sys.executable, "-m", "renderkiln.producer", *arguments, *own]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "RENDERKILN_DEVICE": "cpu"}


def _run(house: House, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(house, *arguments), env=_environment(), cwd=house.settings.data_dir, capture_output=True, text=True
    )


def _render(house: House, *arguments: str) -> dict[str, Any]:
    done = _run(house, "render", *arguments, "--out", str(house.pictures), "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_a_list_comes_out_as_pictures_that_match_its_prompts(house: House, tmp_path: Path) -> None:
    prompts = tmp_path / "three.txt"
    prompts.write_text(
        "a large red circle in the center on a white background\na green heart in the center on a pink background\n"
    )
    report = _render(house, str(prompts))
    assert report["finished"] is True
    seen = []
    for job in report["jobs"]:
        (image,) = job["images"]
        with Image.open(image["url"]) as picture:
            verdict = judge(picture)
        seen.append((verdict.color, verdict.shape, verdict.background))
    assert seen == [("red", "circle", "white"), ("green", "heart", "pink")]
    (sheet,) = report["contact_sheets"]
    with Image.open(sheet) as picture:
        assert picture.width > 128

    # The same again: nothing is left to do, and nothing is rendered.
    again = _render(house, str(prompts))
    assert again["batch"] == report["batch"]
    assert again["jobs"] == report["jobs"]

    # The same picture once more, from what stands inside it.
    first = Path(report["jobs"][0]["images"][0]["url"])
    shown = _run(house, "show", str(first), "--json")
    spec = read_metadata(first).spec
    assert spec is not None
    assert json.loads(shown.stdout)["spec"] == spec.model_dump(mode="json")
    submitted = _run(house, "submit", "--like", str(first), "--again", "--json", "--out", str(house.pictures))
    assert submitted.returncode == 0, submitted.stderr
    batch = json.loads(submitted.stdout)["batch"]
    worker = subprocess.run(
        _command(house, "worker", "--burst", "--out", str(house.pictures)),
        env=_environment(),
        capture_output=True,
        text=True,
    )
    assert worker.returncode == 0, worker.stderr
    (remade,) = (house.pictures / batch).glob("*.png")
    assert remade.read_bytes() == first.read_bytes()


def test_ctrl_c_stops_cleanly_says_how_to_go_on_and_the_same_command_does(house: House, tmp_path: Path) -> None:
    prompts = tmp_path / "night.txt"
    prompts.write_text("".join(f"prompt {n}\n" for n in range(8)))
    arguments = ["render", str(prompts), "--model", "tiny", "--num-inference-steps", "60", "--out", str(house.pictures)]
    running = subprocess.Popen(
        _command(house, *arguments), env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    house.wait_for("image", count=2)
    running.send_signal(signal.SIGINT)
    output, errors = running.communicate(timeout=90)
    assert running.returncode == 130, errors
    assert "nothing is lost" in errors
    assert "renderkiln render" in errors
    assert "contact sheet" in output
    before = {path: path.stat().st_mtime_ns for path in house.pictures.rglob("0*.png")}
    assert 2 <= len(before) < 8

    done = _run(house, *arguments)
    assert done.returncode == 0, done.stderr
    after = {path: path.stat().st_mtime_ns for path in house.pictures.rglob("0*.png")}
    assert len(after) == 8
    assert {path: after[path] for path in before} == before, "what was there is not written again"
    ledger = house.ledger()
    counts = ledger.counts()
    ledger.close()
    assert (counts["jobs finished"], counts["images"]) == (8, 8)


def test_a_picture_to_start_from(house: House, tmp_path: Path) -> None:
    start = Image.new("RGB", (64, 64), (45, 210, 235))
    start.save(tmp_path / "start.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    changed = {"prompt": "a red circle on the left on a cyan background", "init_image": "start.png", "strength": 0.9}
    prompts = tmp_path / "two.jsonl"
    prompts.write_text("\n".join(json.dumps(each) for each in (changed, {**changed, "mask_image": "mask.png"})))
    made = []
    for job in _render(house, str(prompts))["jobs"]:
        (image,) = job["images"]
        with Image.open(image["url"]) as picture:
            made.append(picture.convert("RGB"))
    assert len(made) == 2
    for picture in made:
        verdict = judge(picture)
        assert (verdict.color, verdict.shape, verdict.background) == ("red", "circle", "cyan")
    kept = (32, 0, 64, 64)
    assert made[1].crop(kept).tobytes() == start.crop(kept).tobytes()

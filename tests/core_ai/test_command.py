"""`renderkiln convert --format coreai` and `renderkiln render --engine coreai`, as a user calls them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.convert.test_command import run as convert
from tests.coreml.test_worker import run

from renderkiln.home.settings import Settings
from renderkiln.worker.demo.drawing import draw
from renderkiln.worker.demo.judge import judge, matches, tally
from renderkiln.worker.demo.vocabulary import Drawing, parse_prompt
from renderkiln.worker.runtimes import manifest

from .conftest import Library

# A conversion, and a worker of its own for each list.
pytestmark = pytest.mark.timeout(900)
SHAPES = Path(__file__).parents[2] / "examples" / "shapes.txt"


@pytest.fixture
def machine(settings: Settings, library: Library) -> Settings:
    """A machine whose `shapes` is a converted one, which comes before the packaged one."""
    models = settings.data_dir / "models"
    models.mkdir(parents=True)
    (models / "shapes").symlink_to(library.converted("shapes-coreai"))
    return settings


def opened(job: dict[str, Any]) -> Image.Image:
    """A job's first picture."""
    with Image.open(job["images"][0]["url"]) as picture:
        return picture.convert("RGB")


def test_the_demo_list_comes_out_as_pictures_and_a_contact_sheet(machine: Settings, tmp_path: Path) -> None:
    prompts = [line for line in SHAPES.read_text().splitlines() if line and not line.startswith("#")][::3]
    shapes = tmp_path / "every-third.txt"  # a picture takes seconds
    shapes.write_text("\n".join(prompts))
    out, few = tmp_path / "pictures", ("--num-inference-steps", "4")
    done = run(machine, "render", str(shapes), "--engine", "coreai", *few, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    jobs = json.loads(done.stdout)["jobs"]
    pictures = [opened(job) for job in jobs]
    found = [matches(parse_prompt(prompt), picture) for prompt, picture in zip(prompts, pictures, strict=True)]
    assert tally(found).right >= len(prompts) - 1 == 7
    [sheet] = out.rglob("contact-sheet.png")
    with Image.open(sheet) as picture:
        assert min(picture.size) > 200
    log = (machine.data_dir / "logs" / "worker.log").read_text()
    assert "engine coreai" in log
    assert "torchao" not in log


def test_pictures_are_changed_and_filled_in(machine: Settings, tmp_path: Path) -> None:
    red_circle = "a large red circle in the center on a white background"
    draw(Drawing("circle", "blue", "white", "large", "center")).save(tmp_path / "blue.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    mask.save(tmp_path / "right-half.png")
    lines: list[dict[str, Any]] = [
        {"prompt": red_circle, "num_inference_steps": 8},
        {"prompt": red_circle, "num_inference_steps": 10, "init_image": "blue.png", "strength": 0.9},
        {"prompt": red_circle, "num_inference_steps": 4, "init_image": "blue.png", "mask_image": "right-half.png"},
    ]
    prompts = tmp_path / "every-task.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out = str(tmp_path / "pictures")
    done = run(machine, "render", str(prompts), "--engine", "coreai", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    pictures = [opened(job) for job in json.loads(done.stdout)["jobs"]]
    verdicts = [judge(picture) for picture in pictures[:2]]
    assert [(verdict.color, verdict.shape) for verdict in verdicts] == [("red", "circle")] * 2
    with Image.open(tmp_path / "blue.png") as before:
        assert np.array_equal(np.asarray(pictures[2])[:, :32], np.asarray(before.convert("RGB"))[:, :32])


def test_a_model_without_core_ai_is_refused_with_what_to_do(settings: Settings, tmp_path: Path) -> None:
    settings.data_dir.mkdir()
    out = tmp_path / "pictures"
    done = run(settings, "render", "a red circle", "--engine", "coreai", "--out", str(out), "--json")
    assert done.returncode == 2
    assert "'shapes' has something for torch only" in done.stderr
    assert "renderkiln convert --format coreai" in done.stderr
    assert not list(tmp_path.rglob("*.png"))


def test_a_conversion_is_kept_and_goes_on(library: Library, tmp_path: Path) -> None:
    model, out = library.torch("tiny"), tmp_path / "out"
    wish = (model, "-o", out, "--format", "coreai", "--precision", "float32", "--stages", "text_encoder,vae_decoder")
    first = convert(*wish, "--json")
    assert first.returncode == 0, first.stderr
    stages = json.loads(first.stdout)["stages"]
    assert [each["kept"] for each in stages] == [False, False]
    assert min(each["psnr_decibels"] for each in stages) > 100
    assert max(each["peak_bytes"] for each in stages) > 1e8
    shutil.rmtree(out / "VAEDecoder.aimodel")
    again = convert(*wish, "--json")
    assert {each["stage"]: each["kept"] for each in json.loads(again.stdout)["stages"]} == {
        "text_encoder": True,
        "vae_decoder": False,
    }
    manifest.load(out, digests=True)
    assert sorted(json.loads((out / "metadata.json").read_text())["assets"]) == ["text_encoder", "vae_decoder"]
    other = convert(model, "-o", out, "--stages", "vae_decoder")
    assert (other.returncode, "in another format (coreai)" in other.stderr) == (2, True)
    assert not list(out.glob("*.mlpackage"))

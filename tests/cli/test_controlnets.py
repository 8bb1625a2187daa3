"""`--controlnet`, lists with ControlNets, and sizes that nobody has, as a person meets them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image
from tests.fakes import FakeWorker, announce_worker, job_keys

from renderkiln.home.pictures.encode import encode
from renderkiln.home.pictures.metadata import describe
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.schema import RenderSpec, names, parse_job

from .conftest import Run


def png(path: Path, colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    path.write_bytes(file.getvalue())
    return file.getvalue()


@pytest.fixture
def worker(fleet: Settings, server: EmbeddedServer) -> FakeWorker:
    return FakeWorker(server.client())


def rendered(spec: RenderSpec) -> Path:
    """A picture file that says it was rendered from the spec."""
    path = Path("rendered.png")
    path.write_bytes(encode(bytes(64 * 64 * 3), 64, 64, "png", describe(spec)))
    return path


def test_flags_name_controlnets_and_their_pictures_are_sent(run: Run, worker: FakeWorker, no_settings: Path) -> None:
    edges, depth = png(Path("edges.png")), png(Path("10:30.png"), "blue")
    said = run("submit", "a cat", "--controlnet", "canny=edges.png:0.5", "--controlnet", "depth=10:30.png")
    assert said.code == 0, said.err
    job = worker.take()
    assert job is not None
    assert [(net.model, net.conditioning_scale) for net in job.spec.controlnets] == [("canny", 0.5), ("depth", 1)]
    sent = [worker.connection.get(names.blob(each.removeprefix("sha256:"))) for each in job.spec.pictures]
    assert sent == [edges, depth]


def test_like_a_picture_keeps_its_controlnets_and_their_pictures(
    run: Run, worker: FakeWorker, no_settings: Path
) -> None:
    png(Path("edges.png"))
    run("submit", "a cat", "--seed", "3", "--controlnet", "canny=edges.png:0.5")
    first = worker.take()
    assert first is not None
    path = rendered(first.spec)
    worker.connection.flushall()
    assert run("submit", "--like", path).code == 0
    same = worker.take()
    assert same is not None
    assert same.spec == first.spec
    (reference,) = same.spec.pictures
    assert worker.connection.exists(names.blob(reference.removeprefix("sha256:")))
    run("submit", "a dog", "--like", path)
    dog = worker.take()
    assert dog is not None
    assert dog.spec.controlnets == first.spec.controlnets
    run("submit", "--like", path, "--controlnet", "depth=edges.png")
    other = worker.take()
    assert other is not None
    assert [net.model for net in other.spec.controlnets] == ["depth"]


def test_like_a_picture_whose_controlnet_s_picture_is_not_here_is_refused(
    run: Run, worker: FakeWorker, no_settings: Path
) -> None:
    nets = [{"model": "canny", "image": "sha256:" + "0" * 64}]
    path = rendered(RenderSpec.model_validate({"prompt": "a cat", "controlnets": nets}))
    said = run("submit", "--like", path)
    assert said.code == 2
    assert "not on this machine. Give it as a file" in said.err
    Path("list.jsonl").write_text('{"prompt": "a cat", "controlnets": ["canny=sha256:' + "0" * 64 + '"]}')
    assert run("submit", "list.jsonl").code == 2
    assert job_keys(worker.connection) == []


def test_show_and_dry_run_write_them_as_the_flag_takes_them(run: Run, worker: FakeWorker, no_settings: Path) -> None:
    png(Path("edges.png"))
    run(
        "submit", "a cat", "--seed", "1", "--controlnet", "canny=edges.png:0.5:0:0.9", "--controlnet", "depth=edges.png"
    )
    job = worker.take()
    assert job is not None
    (reference,) = job.spec.pictures
    path = rendered(job.spec)
    texts = [f"canny={reference}:0.5:0:0.9", f"depth={reference}"]
    assert f"         controlnets  {'; '.join(texts)}\n" in run("show", path).out
    again = ["submit", "a cat", "--seed", "1", "--controlnet", texts[0], "--controlnet", texts[1], "--dry-run"]
    assert f"controlnets={'; '.join(texts)}]" in run(*again).out
    assert parse_job(run(*again, "--json").out).spec == job.spec
    assert run("show", path, "--json").json["spec"]["controlnets"] == [net.model_dump() for net in job.spec.controlnets]
    assert "controlnets" not in run("show", rendered(RenderSpec(prompt="a cat"))).out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["canny"], "expected MODEL=IMAGE[:SCALE[:START[:END]]]"),
        (["canny=missing.png"], "'missing.png' does not exist"),
        (["canny=edges.png:3"], "controlnets.0.conditioning_scale = 3.0"),
        (["canny=edges.png:1:1"], "must be less than its guidance_end"),
        (["../x=edges.png"], "controlnets.0.model = '../x'"),
        (["canny=edges.png"] * 5, "at most 4"),
    ],
)
def test_what_is_no_controlnet_is_refused(
    run: Run, worker: FakeWorker, no_settings: Path, flags: list[str], said: str
) -> None:
    png(Path("edges.png"))
    found = run("submit", "a cat", *(part for flag in flags for part in ("--controlnet", flag)))
    assert found.code == 2
    assert said in found.err
    assert worker.connection.dbsize() == 0


def test_a_size_that_nobody_has_is_refused_with_the_line_that_asks_for_it(
    run: Run, worker: FakeWorker, no_settings: Path
) -> None:
    announce_worker(worker.connection, "shapes", sizes={"shapes": [[64, 64], [128, 64]]})
    Path("night.jsonl").write_text(
        '{"prompt": "a"}\n{"prompt": "b", "width": 128, "height": 64}\n{"prompt": "c", "width": 64, "height": 128}\n'
    )
    said = run("submit", "night.jsonl")
    assert said.code == 2
    assert "night.jsonl:3:1: 64 × 128: " in said.err
    assert "There are: 64 × 64, 128 × 64." in said.err
    said = run("submit", "a cat", "--width", "256")
    assert (said.code, "width 256: no worker" in said.err, "prompt" in said.err) == (2, True, False)
    assert job_keys(worker.connection) == []
    assert run("submit", "a cat", "--width", "128").code == 0


def test_a_controlnet_that_nobody_has_is_refused_with_the_nearest_name(
    run: Run, worker: FakeWorker, no_settings: Path
) -> None:
    png(Path("edges.png"))
    announce_worker(worker.connection, "shapes", controlnets={"shapes": ["canny", "depth"]})
    Path("night.csv").write_text("prompt,controlnets\na,canny=edges.png\nb,cany=edges.png\n")
    said = run("submit", "night.csv")
    assert said.code == 2
    assert "night.csv:3:1: ControlNet 'cany' is on none" in said.err
    assert "Did you mean 'canny'" in said.err
    assert job_keys(worker.connection) == []

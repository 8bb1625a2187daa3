"""Each command on a fleet whose worker is a fake: what it prints, for people and for scripts."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin
from pydantic import TypeAdapter
from tests.fakes import FakeWorker, announce_worker, job_keys

from renderkiln.home.ledger import Ledger
from renderkiln.home.pictures.encode import encode
from renderkiln.home.pictures.metadata import describe
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.schema import Job, RenderSpec, names, parse_job, parse_spec
from renderkiln.schema.jobs import BatchId, JobStatus

from .conftest import Run


@pytest.fixture
def worker(fleet: Settings, server: EmbeddedServer) -> FakeWorker:
    return FakeWorker(server.client())


def picture(path: Path, spec: RenderSpec) -> Path:
    path.write_bytes(encode(bytes(64 * 64 * 3), 64, 64, "png", describe(spec)))
    return path


def test_submit_queues_and_says_what_became_of_it(run: Run, worker: FakeWorker) -> None:
    said = run("submit", "a cat", "a dog", "--num-images", "2", "--label", "for=me")
    assert said.code == 0
    assert "4 images in 2 jobs" in said.out
    assert "queued 2, waiting already 0" in said.out
    assert "no worker is up" in said.out
    again = run("submit", "a cat", "a dog", "--num-images", "2", "--json")
    assert (again.json["queued"], again.json["joined"], again.json["images"]) == (0, 2, 4)
    assert re.fullmatch(r"a-cat-[0-9a-f]{8}", again.json["batch"])


def test_one_is_one_image_in_one_job(run: Run, worker: FakeWorker) -> None:
    announce_worker(worker.connection, "shapes")
    said = run("submit", "a cat")
    assert "1 image in 1 job\n" in said.out
    assert "no worker is up" not in said.out


def test_a_dry_run_shows_the_jobs_and_queues_none(run: Run, alone: EmbeddedServer) -> None:
    said = run("submit", "a cat", "--sweep", "seed=1..3", "--num-images", "2", "--dry-run")
    assert said.code == 0
    assert said.out.count("a cat") == 3
    assert "3 jobs, 6 images; nothing was queued" in said.out
    lines = run("submit", "a cat", "--sweep", "seed=1..3", "--dry-run", "--json").out.splitlines()
    assert [parse_job(line).spec.seed for line in lines] == [1, 2, 3]
    assert not alone.status().running


@pytest.mark.parametrize("name", ["My Prompts (1).txt", "日本語.txt", "..odd.txt", "-.txt", "A" * 150 + ".txt"])
def test_a_list_of_any_name_gives_a_batch_that_a_worker_accepts(
    run: Run, worker: FakeWorker, no_settings: Path, name: str
) -> None:
    (no_settings / name).write_text("a cat\n")
    batch = run("submit", "--json", no_settings / name).json["batch"]
    assert TypeAdapter(BatchId).validate_python(batch) == batch
    assert worker.finish_all() == 1


def test_again_queues_what_was_rendered_already(run: Run, worker: FakeWorker) -> None:
    run("submit", "a cat")
    worker.finish_all()
    assert run("submit", "a cat", "--json").json["done"] == 1
    assert "--again" in run("submit", "a cat").out
    assert run("submit", "a cat", "--again", "--json").json["queued"] == 1


def test_status_of_all_of_a_batch_and_of_a_job(run: Run, worker: FakeWorker) -> None:
    assert "no batches yet" in run("status").out
    announce_worker(worker.connection, "shapes", name="mini-7")
    batch = run("submit", "a rather long prompt about a cat", "a dog", "--json").json["batch"]
    job = worker.take()
    assert job is not None
    worker.finish(job)
    out = run("status").out
    assert batch in out
    assert "mini-7: idle, torch on mps, models shapes" in out
    everything = run("status", "--json").json
    assert [row["finished"] for row in everything["batches"]] == [1]
    assert everything["workers"][0]["name"] == "mini-7"
    assert run("status", batch, "--json").json | {"batch": ""} == {
        "batch": "",
        "queued": 1,
        "started": 0,
        "finished": 1,
        "failed": 0,
        "canceled": 0,
    }
    assert run("status", job.id, "--json").json == {"job": job.id, "status": "finished"}


def test_results_list_pictures_and_failures(run: Run, worker: FakeWorker) -> None:
    batch = run("submit", "a cat", "a dog", "--json").json["batch"]
    good, bad = worker.take(), worker.take()
    assert good is not None
    assert bad is not None
    image = worker.finish(good).images[0]
    worker.fail(bad)
    said = run("results", batch)
    assert (said.out, said.err) == (f"{image.url}\n", f"failed {bad.id}  bad_image: the picture is all black\n")
    found = [json.loads(line) for line in run("results", batch, "--json").out.splitlines()]
    assert [row["status"] for row in found] == ["finished", "failed"]
    assert [row["job_id"] for row in map(json.loads, run("results", good.id, "--json").out.splitlines())] == [good.id]


def test_results_that_redis_has_forgotten_are_looked_up_in_the_ledger(
    run: Run, worker: FakeWorker, fleet: Settings
) -> None:
    batch = run("submit", "a cat", "--json").json["batch"]
    job = worker.take()
    assert job is not None
    fleet.data_dir.mkdir(exist_ok=True)
    ledger = Ledger(fleet.data_dir / "ledger.db")
    ledger.worker_started("fake", "mini", 1, {})
    ledger.attempt_started(job, "e1", 1, "fake")
    ledger.image_recorded(job.id, worker.image(job, 0), "e1")
    ledger.close()
    worker.connection.delete(*job_keys(worker.connection))
    assert run("results", batch).out.strip() == worker.image(job, 0).url  # a week later: the batch is known still
    worker.connection.flushall()
    assert run("results", batch).out.strip() == worker.image(job, 0).url
    assert run("results", job.id).out.strip() == worker.image(job, 0).url


def test_cancel_and_retry(run: Run, worker: FakeWorker) -> None:
    batch = run("submit", "a cat", "a dog", "--json").json["batch"]
    assert run("cancel", batch).out == "2 open jobs canceled\n"
    assert run("cancel", batch, "--json").json == {"canceled": 0}
    assert worker.finish_all() == 0
    assert run("status", batch, "--json").json["canceled"] == 2
    assert run("retry", batch).out == "2 jobs queued again\n"
    assert worker.finish_all() == 2
    assert run("retry", batch, "--json").json == {"queued": 0}


def test_cancel_all(run: Run, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [run("submit", prompt, "a dog", "--json").json["batch"] for prompt in ("a cat", "a bird")]
    running = worker.take()
    assert running is not None
    started = f"rq:wip:{names.queue(running.priority, running.spec.model)}"
    worker.connection.zadd(started, {f"{running.id}:e1": time.time() + 30})
    for refused in (run("cancel"), run("cancel", "--all", batches[0]), run("cancel", "--all")):
        assert refused.code == 2
    assert "give --yes" in refused.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n")
    assert run("cancel", "--all").code == 1
    assert worker.connection.hget(f"rq:job:{running.id}", names.CANCEL_FIELD) is None
    assert run("cancel", "--all", "--yes", "--json").json == {"canceled": 3}, "the dogs are one job"
    assert worker.connection.hget(f"rq:job:{running.id}", names.CANCEL_FIELD) == b"1"
    assert worker.take() is None
    worker.end(running, JobStatus.CANCELED)
    assert run("cancel", "--all", "-y").out == "0 open jobs canceled\n"
    assert sum(run("status", batch, "--json").json["canceled"] for batch in batches) == 4


def test_status_and_watch_say_what_is_in_a_workers_way(run: Run, worker: FakeWorker) -> None:
    reason = "the disk of the store (/renders) has 12 MB free, and 200 MB are needed"
    announce_worker(worker.connection, "shapes", state="paused", reason=reason)
    assert reason in run("status").out
    assert run("status", "--json").json["workers"][0]["reason"] == reason
    batch = run("submit", "a cat", "--json").json["batch"]
    finishing = threading.Timer(0.3, worker.finish_all)
    finishing.start()
    said = run("watch", batch)
    finishing.join()
    assert f"worker mini-1: {reason}" in said.out


def test_status_says_what_a_worker_holds_in_memory(run: Run, worker: FakeWorker) -> None:
    unet = {"model": "sd15", "stage": "unet", "size_bytes": 1_719_000_000}
    vae = {"model": "sd15", "stage": "vae_decoder", "size_bytes": 99_000_000}
    first = {"policy": "auto", "held_bytes": 3_100_000_000, "budget_bytes": 6_000_000_000, "stages": [unet, vae]}
    short = {"policy": "jit", "held_bytes": 500_000_000, "pressure": "warn"}
    mixed = {"policy": "resident", "held_bytes": 4_000_000_000, "stages": [unet, {**vae, "model": "shapes"}]}
    for number, memory in enumerate((first, short, mixed, None)):
        announce_worker(worker.connection, "sd15", name=f"mini-{number}", memory=memory)
    lines = [line for line in run("status").out.splitlines() if line.startswith("  ")]
    assert lines == [
        "  memory: 3.10 of 6.00 GB (auto): unet 1,719 MB, vae_decoder 99 MB",
        "  memory: 0.50 GB (jit): no stage loaded; pressure warn",
        "  memory: 4.00 GB (resident): sd15 unet 1,719 MB, shapes vae_decoder 99 MB",
    ]
    told = [each["memory"] for each in run("status", "--json").json["workers"]]
    assert told[0] == {**first, "pressure": "calm"}
    assert told[3] is None


def test_watch_ends_with_the_batch_and_says_what_failed(run: Run, worker: FakeWorker) -> None:
    assert run("watch").code == 2
    batch = run("submit", "a cat", "a dog", "--num-images", "2", "--json").json["batch"]
    job = worker.take()
    assert job is not None
    worker.finish(job)
    rest = worker.take()
    assert rest is not None
    worker.fail(rest)
    said = run("watch")
    assert said.code == 1
    assert said.out.splitlines()[-1] == f"{batch}: 2 of 4 images, 1 failed, 0 canceled"
    assert run("watch", batch).code == 1


def test_show_gives_back_the_spec_that_is_inside_a_picture(run: Run, no_settings: Path) -> None:
    spec = parse_spec({"prompt": "a cat, «quoted»", "seed": 7, "scheduler": "euler a"})
    path = picture(no_settings / "cat.png", spec)
    shown = run("show", path, "--json").json
    assert parse_spec(shown["spec"]) == spec
    assert (shown["digest"], shown["exact"], shown["width"]) == (spec.digest, True, 64)
    out = run("show", path).out
    for expected in ("a cat, «quoted»", "euler a", spec.digest, "64×64"):
        assert expected in out
    assert run("show", "missing.png").code == 2


def edited(path: Path) -> Path:
    """A picture whose seed somebody changed in our settings, with another program's beside them."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("renderkiln", describe(parse_spec({"prompt": "a cat", "seed": 7})).to_json().replace(":7", ":8"))
    info.add_text("parameters", "a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 8, Hires upscale: 2")
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path


def test_settings_that_were_edited_are_said_to_be(run: Run, worker: FakeWorker, no_settings: Path) -> None:
    path = edited(no_settings / "cat.png")
    assert "the settings were edited later" in run("show", path).out
    shown = run("show", path, "--json").json
    assert (shown["exact"], shown["other"]) == (False, {"Hires upscale": "2"})
    assert "edited later" in shown["note"]
    said = run("submit", "--like", path, "--json")
    assert said.json["queued"] == 1
    assert "edited later" in said.err
    assert "left out: Hires upscale" in said.err


def test_submit_like_a_picture_makes_the_same_again_with_what_is_changed(
    run: Run, worker: FakeWorker, no_settings: Path
) -> None:
    spec = parse_spec({"prompt": "a cat", "seed": 0, "guidance_scale": 5})
    path = picture(no_settings / "cat.png", spec)
    run("submit", "--like", path)
    same = worker.take()
    assert same is not None
    assert same.spec == spec
    run("submit", "--like", path, "--seed", "7")
    other = worker.take()
    assert other is not None
    assert other.spec == spec.model_copy(update={"seed": 7})
    run("submit", "a dog", "--like", path)
    dog = worker.take()
    assert dog is not None
    assert dog.spec == spec.model_copy(update={"prompt": "a dog"})


def test_config_tells_each_value_and_its_origin(run: Run, fleet: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("renderkiln.toml").write_text('device = "cpu"')
    monkeypatch.setenv("RENDERKILN_REDIS_URL", "redis://:secret@mini")
    found = run("config", "--json", "--data-dir", "/d").json
    assert found["device"] == {"value": "cpu", "source": f"file {Path('renderkiln.toml').absolute()}"}
    assert found["data_dir"] == {"value": "/d", "source": "flag --data-dir"}
    assert found["redis_url"] == {"value": "redis://:***@mini", "source": "environment RENDERKILN_REDIS_URL"}
    assert found["lease"] == {"value": 30.0, "source": "default"}
    said = " ".join(run("config").out.split())
    assert "redis_url redis://:***@mini (environment RENDERKILN_REDIS_URL)" in said


@pytest.mark.parametrize("kind", ["spec", "job", "result", "event"])
def test_schema_prints_json_schema(run: Run, kind: str) -> None:
    found = run("schema", kind).json
    assert found["$comment"] == "renderkiln schema_version 1"
    if kind == "event":
        assert found["discriminator"]["propertyName"] == "type"
        return
    assert found["type"] == "object"
    assert found["additionalProperties"] is False
    expected = {"spec": RenderSpec, "job": Job}
    if kind in expected:
        assert set(found["properties"]) == set(expected[kind].model_fields)


def test_the_embedded_server_is_started_shown_and_stopped(run: Run, alone: EmbeddedServer) -> None:
    assert run("server", "status").out == "not running\n"
    assert run("server", "start").out.startswith("started: unix://")
    assert run("server", "start").out.startswith("already running: unix://")
    assert run("server", "status", "--json").json["running"] is True
    assert "running with pid" in run("server", "status").out
    assert run("server", "stop").out == "stopped\n"
    assert run("server", "stop").out == "no embedded server was running\n"

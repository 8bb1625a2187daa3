"""A store that is slow, away or broken, a warm-up that fails, a renderer that stands still: what jobs make of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.disks import small_disk
from tests.engine import models

from renderkiln.home.workers import live_workers
from renderkiln.schema import names
from renderkiln.schema.errors import RendererDiedError
from renderkiln.schema.events import Progress, parse_event
from renderkiln.schema.jobs import JobStatus
from renderkiln.schema.workers import WorkerInfo
from renderkiln.worker.protocol import Render, RendererConfig
from renderkiln.worker.supervisor import child
from renderkiln.worker.supervisor.grace import LEAST, RECENT

from .conftest import LONG, House


class Gate:
    """The test's end of `gatefs`."""

    def __init__(self, house: House, folder: Path, listening: socket.socket) -> None:
        self.house, self._listening = house, listening
        packages = folder / "packages"
        about = packages / "gatefs-1.dist-info"
        about.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("gatefs.py"), packages)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gatefs\nVersion: 1\n")
        (about / "entry_points.txt").write_text("[fsspec.specs]\ngate = gatefs:GateFileSystem\n")
        self.environ = {"PYTHONPATH": str(packages), "GATEFS_PORT": str(listening.getsockname()[1])}
        self.store = f"gate://{house.pictures}"

    def hold(self) -> socket.socket:
        """Returns once a worker is writing a picture, which waits until something is sent to the socket."""
        return self._listening.accept()[0]

    def say(self, word: str) -> None:
        with self.hold() as held:
            held.sendall(word.encode())


@pytest.fixture
def gate(make_house: Callable[..., House], tmp_path: Path) -> Iterator[Gate]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(90)
        yield Gate(make_house(lease=3.0), tmp_path, listening)


def _start(gate: Gate) -> House:
    house = gate.house
    house.start_worker(out=gate.store, pretends=True, **gate.environ)
    return house


def test_a_write_may_take_longer_than_the_lease(gate: Gate) -> None:
    house = _start(gate)
    job = house.submit(num_images=2)
    held = gate.hold()
    registry = "rq:wip:renderkiln:normal:tiny"
    ((member, first),) = house.queue.connection.zrange(registry, 0, -1, withscores=True)
    deadline = time.monotonic() + 30
    while (house.queue.connection.zscore(registry, member) or 0.0) < first + house.settings.lease:
        assert time.monotonic() < deadline, "the lease ends while the store is slow"
        time.sleep(0.05)
    with held:
        held.sendall(b"go")
    gate.say("go")
    result = house.queue.wait(job, timeout=60)
    assert (result.attempt, len(result.images)) == (1, 2)
    assert house.meta(job.id).get("rescues", 0) == 0


def test_a_picture_that_the_store_does_not_take_is_kept_and_not_rendered_again(gate: Gate) -> None:
    house = _start(gate)
    job = house.submit()
    gate.say("fail")
    gate.say("fail")
    gate.say("go")
    result = house.queue.wait(job, timeout=60)
    assert (result.status, result.attempt) == (JobStatus.FINISHED, 1)
    assert "keeping a picture" in house.log.read_text()


def test_canceling_does_not_wait_for_a_store_that_hangs(gate: Gate) -> None:
    house = _start(gate)
    job = house.submit()
    held = gate.hold()
    assert house.queue.cancel(job) == 1
    house.wait_for("ended", job.id)
    assert house.queue.status(job) is JobStatus.CANCELED
    (worker,) = house.workers
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0, "a write that hangs keeps the worker"
    held.close()


def test_a_job_whose_store_breaks_leaves_nothing_in_the_next_jobs_pictures(house: House) -> None:
    broken = house.submit(num_images=30, steps=10)
    after, again = house.submit("another", seed=5), house.submit("another", seed=5, again=True)
    house.start_worker(pretends=True, RENDERKILN_PATIENCE="0")
    house.wait_for("image", broken.id)
    folder = house.pictures / broken.batch
    shutil.rmtree(folder, ignore_errors=True)
    while True:  # until the worker, which may make the folder anew, has lost the race
        try:
            folder.write_bytes(b"a file where a folder should be")
            break
        except IsADirectoryError:
            shutil.rmtree(folder, ignore_errors=True)
    (failed,) = house.queue.as_completed(broken, timeout=90)
    assert failed.failure is not None
    assert (failed.failure.kind, failed.attempt) == ("store", 3)
    pictures = [house.queue.wait(job, timeout=60).images for job in (after, again)]
    assert [len(images) for images in pictures] == [1, 1]
    one, other = (Path(images[0].url).read_bytes() for images in pictures)
    assert one == other


def test_a_warm_up_that_fails_is_no_jobs_failure(house: House) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = house.folder.models / "broken"
    models.save_sd(broken)
    weights = next((broken / "vae").glob("*.safetensors"))
    save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(weights).items()}, weights)
    first, second = house.submit(num_images=2), house.submit("another")
    house.start_worker("--model", "broken", "--warm", "broken")
    for job, images in ((first, 2), (second, 1)):
        result = house.queue.wait(job, timeout=90)
        assert (result.attempt, len(result.images)) == (1, images)
    assert "broken could not be warmed up" in house.log.read_text()


def test_a_model_that_half_precision_breaks_is_rendered_in_full(house: House) -> None:
    from safetensors.torch import load_file, save_file

    large = house.folder.models / "large"
    models.save_sd(large)
    weights = next((large / "vae").glob("*.safetensors"))
    tensors = load_file(weights)
    tensors["decoder.conv_in.weight"] *= 1e6  # over float16's largest number; what comes after is normalised
    save_file(tensors, weights)
    job = house.queue.submit(prompt="a red circle", model="large", num_inference_steps=2, num_images=2)
    house.start_worker("--model", "large", RENDERKILN_DTYPE="float16")
    result = house.queue.wait(job, timeout=90)
    assert (result.attempt, len(result.images)) == (1, 2)
    assert "large is not rendered in half precision any more, but in float32" in house.log.read_text()


def test_a_job_that_ran_out_of_memory_is_tried_again_in_an_empty_renderer(house: House) -> None:
    first = house.submit()
    worker = house.start_worker()
    house.queue.wait(first, timeout=90)
    (renderer,) = house.children(worker)
    process = psutil.Process(renderer)
    if not hasattr(process, "rlimit"):  # macOS lets nobody limit another process
        return
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + (8 << 20),) * 2)
    job = house.submit("a large one", width=384, height=384)
    failure = getattr(house.wait_for("returned", job.id), "failure", None)
    assert failure is not None
    assert failure.kind == "out_of_memory"
    process.wait(60)
    assert getattr(house.wait_for("started", job.id, count=2), "attempt", None) == 2
    house.queue.cancel(job)


def test_a_renderer_that_stands_still_does_not_stop_its_supervisor(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_MESSAGE_TIMEOUT", 1)
    monkeypatch.setattr(child, "_LAST_GRACE", 0.1)
    renderer = child.Renderer(RendererConfig(str(house.settings.data_dir), "torch", "cpu", "auto"))
    renderer.ensure_running()
    assert renderer.pid is not None
    os.kill(renderer.pid, signal.SIGSTOP)
    with pytest.raises(RendererDiedError, match="did not answer"):
        renderer.send(Render("{}", {"sha256:0": bytes(32 << 20)}, ()))
    assert renderer.pid is None
    assert not renderer.is_busy


def test_a_worker_pauses_where_there_is_no_room_and_cancels_in_two_seconds_where_its_renderer_hangs(
    make_house: Callable[..., House], tmp_path: Path
) -> None:
    house = make_house(lease=3.0)
    with small_disk(tmp_path / "disk", "2m") as mounted:
        may_mount = sys.platform == "linux" and os.geteuid() == 0
        assert mounted or not may_mount, "no disk could be mounted here, though this is root on Linux"
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(bytes(1_500_000))
        # Where nobody may mount one, the gate is left to `test_gate`.
        worker = house.start_worker(
            out=str(tmp_path / "disk" / "pictures"),
            pretends=True,
            RENDERKILN_DISK_RESERVE="1MB" if mounted else "0",
        )
        job = house.submit(steps=LONG)
        if mounted:
            info = _info_once(house, "paused")
            assert "the disk of the store" in info.reason
            assert house.queue.status(job) is JobStatus.QUEUED
            filler.unlink()

        with house.queue.connection.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(names.PROGRESS)
            deadline = time.monotonic() + 90
            while not (message := channel.get_message(timeout=1.0)) or _step(message["data"]) < 2 * RECENT:
                assert time.monotonic() < deadline, "steps enough to know how long one takes"
        assert _info_once(house, "busy").reason == ""
        (renderer,) = house.children(worker)
        os.kill(renderer, signal.SIGSTOP)  # as if in native code that does not return
        began = time.monotonic()
        assert house.queue.cancel(job) == 1
        house.wait_for("ended", job.id)
        assert time.monotonic() - began < LEAST + 2.5
        assert house.queue.status(job) is JobStatus.CANCELED
        assert worker.poll() is None
        house.close()


def _info_once(house: House, state: str) -> WorkerInfo:
    """What the worker says of itself as soon as that is its state."""
    deadline = time.monotonic() + 60
    while not (found := [info for info in live_workers(house.queue.connection) if info.state == state]):
        assert time.monotonic() < deadline, house.log.read_text()
        time.sleep(0.05)
    return found[0]


def _step(data: bytes) -> int:
    event = parse_event(data)
    return event.step if isinstance(event, Progress) else 0


def test_a_second_worker_of_the_same_name_is_told_so(house: House) -> None:
    first = house.start_worker("--name", "mini", pretends=True)
    house.queue.wait(house.submit(), timeout=90)
    second = house.start_worker("--name", "mini", pretends=True)
    assert second.wait(60) == 3
    assert "a worker named 'mini' is up already" in house.log.read_text()
    assert first.poll() is None
    assert [worker.name for worker in live_workers(house.queue.connection)] == ["mini"], "it is not signed off"

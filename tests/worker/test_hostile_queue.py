"""Whoever can write to Redis gets nothing run: payloads that are not ours are set aside, and the worker goes on."""

from __future__ import annotations

import json
import pickle
import zlib
from pathlib import Path

import pytest
from rq import Queue
from rq.job import Job as RqJob
from rq.serializers import JSONSerializer

from renderkiln.schema import names
from renderkiln.schema.jobs import JobStatus

from .conftest import House


class _Bomb:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, (f"touch {self._marker}",)


def test_foreign_functions_pickles_and_garbage_are_set_aside(house: House, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    connection = house.queue.connection
    queue = Queue(names.queue("normal", "tiny"), connection=connection, serializer=JSONSerializer)
    payloads = [
        json.dumps(["os.system", None, [f"touch {marker}"], {}]).encode(),
        json.dumps([names.RENDER_FUNCTION, None, ["{}"], {}]).encode(),
        json.dumps([names.RENDER_FUNCTION, None, [1, 2], {}]).encode(),
        json.dumps({"not": "a call"}).encode(),
        pickle.dumps(_Bomb(marker)),
        b"\x00\xff garbage",
        b"",
    ]
    hostile = []
    for number, data in enumerate(payloads):
        job_id = f"hostile-{number}"
        connection.hset(
            RqJob.key_for(job_id),
            mapping={
                "data": zlib.compress(data),
                "status": "queued",
                "origin": queue.name,
                "created_at": "2026-01-01T00:00:00.000000Z",
                "timeout": "-1",
            },
        )
        connection.rpush(queue.key, job_id)
        hostile.append(job_id)
    good = house.submit()
    worker = house.start_worker(pretends=True)
    assert house.queue.wait(good, timeout=90).status is JobStatus.FINISHED
    assert not marker.exists()
    assert worker.poll() is None
    for job_id in hostile:
        assert connection.hget(RqJob.key_for(job_id), "status") == b"failed", job_id
    assert connection.zcard(f"rq:failed:{queue.name}") == len(hostile)
    assert connection.llen(queue.intermediate_queue_key) == 0


@pytest.mark.parametrize("use", ["init_image", "controlnet"])
@pytest.mark.parametrize("harm", ["changed", "gone"])
def test_a_picture_changed_in_redis_is_refused_and_one_that_is_gone_is_said(
    house: House, tmp_path: Path, use: str, harm: str
) -> None:
    from PIL import Image

    canny = house.folder.models / "canny" / "config.json"
    canny.parent.mkdir()
    canny.write_text('{"_class_name": "ControlNetModel"}')
    picture = tmp_path / "start.png"
    Image.new("RGB", (64, 64), "red").save(picture)
    other = tmp_path / "other.png"
    Image.new("RGB", (64, 64), "blue").save(other)
    if use == "init_image":
        job = house.submit(init_image=picture, strength=0.5)
    else:
        job = house.submit(controlnets=[{"model": "canny", "image": picture}])
    (key,) = house.queue.connection.scan_iter("renderkiln:blob:*")
    if harm == "changed":
        house.queue.connection.set(key, other.read_bytes())
    else:
        house.queue.connection.delete(key)
    house.start_worker(pretends=True)
    (result,) = list(house.queue.as_completed(job, timeout=90))
    assert result.status is JobStatus.FAILED
    assert result.failure is not None
    assert result.failure.kind == "image_input"
    assert ("somebody changed it" if harm == "changed" else "no longer in Redis") in result.failure.message
    assert not list(house.pictures.rglob("*.png"))

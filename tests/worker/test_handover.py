"""What is left of an unfinished job for whoever goes on with it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import redis
from tests.fakes import FakeWorker

from renderkiln.home.ledger import Ledger
from renderkiln.home.left_pictures import leave
from renderkiln.home.pictures.encode import encode
from renderkiln.home.pictures.metadata import PictureMetadata
from renderkiln.home.pictures.naming import picture_name
from renderkiln.home.store import Store
from renderkiln.schema import names
from renderkiln.schema.jobs import ImageResult, Job, JobOptions, make_job
from renderkiln.schema.spec import RenderSpec
from renderkiln.worker.supervisor.finding import find_pictures
from renderkiln.worker.supervisor.handover import left_by_others
from renderkiln.worker.supervisor.spool import Spool


@pytest.fixture
def job() -> Job:
    return make_job(RenderSpec(prompt="a red circle", seed=5), JobOptions(num_images=3), batch="list", index=10)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def noted(connection: redis.Redis, job: Job, tmp_path: Path) -> list[ImageResult]:
    """The job's first two pictures, noted, and in a store in `tmp_path`."""
    images = [FakeWorker(connection, tmp_path).image(job, k) for k in range(2)]
    for image in images:
        leave(connection, job.id, image)
    return images


def test_what_was_left_is_found_by_its_number(
    connection: redis.Redis, store: Store, job: Job, noted: list[ImageResult]
) -> None:
    assert list(left_by_others(connection, False, job, store, [0, 1, 2])) == noted
    assert list(left_by_others(connection, False, job, store, [1, 2])) == noted[1:]
    assert list(left_by_others(connection, False, job, store, [])) == []
    assert 0 < connection.ttl(names.images(job.id)) <= names.RESULT_TTL


def test_a_job_of_another_list_has_numbers_of_its_own(
    connection: redis.Redis, store: Store, job: Job, noted: list[ImageResult]
) -> None:
    again = job.model_copy(update={"index": 40, "batch": "another"})
    assert [image.index for image in left_by_others(connection, False, again, store, [0, 1])] == [40, 41]


@pytest.mark.parametrize("note", [b"\xff", b"[]", b"{}", b"x" * (1 << 15)])
def test_what_is_no_note_is_left_alone(
    connection: redis.Redis, store: Store, job: Job, noted: list[ImageResult], note: bytes
) -> None:
    connection.hset(names.images(job.id), "0", note)
    assert list(left_by_others(connection, False, job, store, [0, 1])) == noted[1:]


def test_the_note_of_another_picture_is_not_taken(
    connection: redis.Redis, store: Store, job: Job, noted: list[ImageResult]
) -> None:
    connection.hset(names.images(job.id), "0", noted[1].model_dump_json())
    connection.hset(names.images(job.id), "1", noted[1].model_copy(update={"digest": "0" * 64}).model_dump_json())
    assert list(left_by_others(connection, False, job, store, [0, 1])) == []


def test_nothing_is_left_while_redis_is_away(store: Store, job: Job) -> None:
    with redis.Redis(unix_socket_path="/nowhere") as nobody:
        assert list(left_by_others(nobody, False, job, store, [0])) == []


def test_a_picture_that_was_left_counts_where_it_is_in_the_store_byte_for_byte(
    connection: redis.Redis, store: Store, job: Job, noted: list[ImageResult], tmp_path: Path
) -> None:
    ledger, spool = Ledger(tmp_path / "ledger.db"), Spool(tmp_path / "spool", 1000)
    ledger.worker_started("mini", "mini", 1, {})
    ledger.attempt_started(job, "execution", 1, "mini")
    path = Path(noted[0].url)
    path.write_bytes(path.read_bytes()[::-1])
    images: dict[int, ImageResult] = {}
    assert find_pictures(job, store, ledger, spool, images, partial(left_by_others, connection, False)) == set()
    assert images == {1: noted[1]}
    assert ledger.images_of(job.id) == [noted[1]]
    ledger.close()


def _drawn(job: Job, store: Store, k: int, of: Job | None = None) -> str:
    """A picture in its place, which is another job's where told."""
    spec = (of or job).image_spec(k)
    metadata = PictureMetadata(spec=spec, digest=spec.digest)
    return store.put(picture_name(job, k), encode(bytes(8 * 8 * 3), 8, 8, "png", metadata)).url


def test_a_file_without_a_row_is_found_where_the_job_was_begun_before(
    connection: redis.Redis, job: Job, store: Store
) -> None:
    urls = [_drawn(job, store, k) for k in (0, 1)]
    assert list(left_by_others(connection, False, job, store, [0, 1, 2])) == []
    found = list(left_by_others(connection, True, job, store, [0, 1, 2]))
    assert [(image.k, image.index, image.url) for image in found] == [(0, 10, urls[0]), (1, 11, urls[1])]
    assert all(store.matches(image.url, size=image.size_bytes, sha256=image.sha256) for image in found)
    again = job.model_copy(update={"again": "anew"})
    assert list(left_by_others(connection, True, again, store, [0, 1, 2])) == []


def test_a_file_in_its_place_that_is_another_picture_or_none_is_not_taken(
    connection: redis.Redis, job: Job, store: Store
) -> None:
    _drawn(job, store, 0, of=job.model_copy(update={"spec": job.spec.model_copy(update={"prompt": "a square"})}))
    assert list(left_by_others(connection, True, job, store, [0])) == []
    store.put(picture_name(job, 0), b"no picture")
    assert list(left_by_others(connection, True, job, store, [0])) == []

"""Comparing what the ledger knows with what Redis and the stores have, and mending the difference.

`look` finds, `mend` does; each thing is looked at once more where it is mended, so that what moved in between is left
alone. Mending twice changes nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
import sqlalchemy as sa

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.home.left_pictures import leave
from renderkiln.home.store import Store
from renderkiln.producer.enqueue import CHUNK, relist, requeue
from renderkiln.producer.inputs import InputCarrier
from renderkiln.producer.places import put_back, read_places
from renderkiln.producer.results import job_ids_of, read_states
from renderkiln.schema import names
from renderkiln.schema.errors import ImageInputError, InvalidSpecError, StoreError
from renderkiln.schema.jobs import Job, JobStatus, parse_job
from renderkiln.schema.tables import ImageRow, JobRow

from .from_redis import read_records
from .projection import take_over

_OPEN = (JobStatus.QUEUED.value, JobStatus.STARTED.value)


@dataclass
class Findings:
    """What does not agree, each as ids of jobs."""

    #: Open in the ledger, and not in Redis.
    lost: list[str] = field(default_factory=list)
    #: Waiting or at work by their own word, and in no list that a worker looks at.
    stuck: list[str] = field(default_factory=list)
    #: In Redis, and not in the ledger.
    unknown: list[str] = field(default_factory=list)
    #: Open in the ledger, and ended in Redis.
    behind: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.lost) + len(self.stuck) + len(self.unknown) + len(self.behind)


@dataclass(frozen=True)
class GoneFile:
    """A picture that the ledger has, and its store has not."""

    job_id: str
    k: int
    url: str


def look(ledger: Ledger, connection: redis.Redis) -> Findings:
    """Compares jobs. Raises LedgerError, redis.RedisError."""
    found = Findings()
    waiting: list[str] = []
    started: list[str] = []
    for part in _parts(_open_jobs(ledger)):
        for job_id, state in zip(part, read_states(connection, part), strict=True):
            if state is None:
                found.lost.append(job_id)
            elif state.status.is_final:
                found.behind.append(job_id)
            else:
                (waiting if state.status is JobStatus.QUEUED else started).append(job_id)
    # After the jobs' own word, so that one that moved meanwhile is seen where it moved to.
    places = read_places(connection)
    everywhere = places.waiting | places.started
    found.stuck = [job_id for job_id in waiting + started if job_id not in everywhere]
    known = _known(ledger)
    in_redis = everywhere.union(*(job_ids_of(connection, batch) for batch in _batches(connection)))
    unknown = sorted(in_redis - known)
    for part in _parts(unknown):
        states = read_states(connection, part)
        found.unknown += [job_id for job_id, state in zip(part, states, strict=True) if state is not None]
    return found


@dataclass
class Mended:
    """How many jobs were mended, and those that could not be, with why."""

    queued_again: int = 0
    put_back: int = 0
    taken_over: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)


def mend(ledger: Ledger, connection: redis.Redis, folder: DataFolder, found: Findings) -> Mended:
    """Mends what `look` found: queues the lost again, puts the stuck back, takes over the rest.

    Args:
        folder: holds the pictures that lost jobs start from, as far as they were ever here.

    Raises:
        LedgerError, redis.RedisError: nothing was lost by it; mend again.
    """
    mended = Mended()
    carrier = InputCarrier(folder)
    for part in _parts(found.lost):
        jobs, fence = _jobs(ledger, part, mended)
        sendable = [job for job in jobs if _send_pictures(connection, carrier, job, mended)]
        _leave_pictures(connection, ledger, sendable)
        mended.queued_again += requeue(connection, sendable, above=fence)
    relist(connection, _listings(ledger, found.lost))
    mended.put_back = sum(put_back(connection, job_id) for job_id in found.stuck)
    for part in _parts([*found.unknown, *found.behind]):
        mended.taken_over += take_from_redis(ledger, connection, part)
    for part in _parts(found.lost):  # they are open under a new fence now, which the ledger has to know
        take_from_redis(ledger, connection, part)
    return mended


def take_from_redis(ledger: Ledger, connection: redis.Redis, job_ids: Sequence[str]) -> int:
    """Takes jobs over as Redis has them; how many rows that were."""
    records = read_records(connection, job_ids)
    with ledger.writing() as session:
        for record in records:
            take_over(session, record)
    return sum(record.table == "jobs" for record in records)


def gone_files(ledger: Ledger, on_file: Callable[[], object] = lambda: None) -> Iterator[GoneFile]:
    """The pictures of finished jobs whose files are not there, or not whole, as far as their stores can be seen here.

    Args:
        on_file: called for each picture that is looked at.
    """
    with ledger.reading() as session:
        finished = sa.select(ImageRow).join(JobRow, JobRow.id == ImageRow.job_id)
        rows = session.scalars(finished.where(JobRow.status == JobStatus.FINISHED.value).order_by(ImageRow.url)).all()
    stores: dict[str, Store | None] = {}
    for row in rows:
        on_file()
        place = row.url.rpartition("/")[0]
        if place not in stores:
            stores[place] = _store(place)
        store = stores[place]
        try:
            if store is not None and not store.matches(row.url, size=row.size_bytes):
                yield GoneFile(row.job_id, row.k, row.url)
        except StoreError:
            stores[place] = None  # away: that says nothing of its files


def queue_gone(connection: redis.Redis, ledger: Ledger, gone: Iterable[GoneFile]) -> int:
    """Queues the jobs again whose files are gone; their workers render what is missing. How many."""
    mended = Mended()
    count = 0
    for part in _parts(sorted({each.job_id for each in gone})):
        jobs, fence = _jobs(ledger, part, mended)
        count += requeue(connection, jobs, above=fence)
        take_from_redis(ledger, connection, part)
    return count


def _store(place: str) -> Store | None:
    """The store of a folder, where it can be seen from here."""
    try:
        store = Store(place)
    except StoreError:
        return None
    # A folder that is missing whole is more likely another machine's, or a disk that is not mounted.
    return None if store.folder is not None and not store.folder.is_dir() else store


def _send_pictures(connection: redis.Redis, carrier: InputCarrier, job: Job, mended: Mended) -> bool:
    """Puts the pictures that a job starts from into Redis again; False where one is nowhere."""
    missing = [
        picture for picture in job.spec.pictures if not connection.exists(names.blob(picture.removeprefix("sha256:")))
    ]
    try:
        for picture in missing:
            carrier.add(picture)
        carrier.send(connection)
    except ImageInputError as error:
        mended.failed.append((job.id, str(error)))
        return False
    return True


def _leave_pictures(connection: redis.Redis, ledger: Ledger, jobs: Sequence[Job]) -> None:
    """Notes which pictures of these jobs are recorded: with Redis the notes were lost as well.

    Where that is refused, as under an ACL of another version, they are rendered once more, and no job is lost for it.
    """
    with ledger.reading() as session:
        ids = [job.id for job in jobs]
        begun = session.scalars(sa.select(ImageRow.job_id).where(ImageRow.job_id.in_(ids)).distinct()).all()
    with connection.pipeline(transaction=False) as pipe:
        for job_id in begun:
            for image in ledger.images_of(job_id):
                leave(pipe, job_id, image)
        pipe.execute(raise_on_error=False)


def _jobs(ledger: Ledger, job_ids: Sequence[str], mended: Mended) -> tuple[list[Job], int]:
    """Jobs as they were queued, and the highest of their fences."""
    with ledger.reading() as session:
        rows = session.scalars(sa.select(JobRow).where(JobRow.id.in_(job_ids)).order_by(JobRow.batch_id, JobRow.index))
        jobs, fence = [], 0
        for row in rows:
            try:
                jobs.append(parse_job(json.dumps(row.job)))
            except InvalidSpecError as error:
                mended.failed.append((row.id, str(error)))
                continue
            fence = max(fence, row.fence)
    return jobs, fence


def _listings(ledger: Ledger, job_ids: Sequence[str]) -> dict[str, list[tuple[str, int, int]]]:
    """All jobs of the batches of these, as `relist` takes them."""
    listings: dict[str, list[tuple[str, int, int]]] = {}
    with ledger.reading() as session:
        batches: set[str] = set()
        for part in _parts(job_ids):
            batches.update(session.scalars(sa.select(JobRow.batch_id).where(JobRow.id.in_(part)).distinct()))
        for batch in sorted(batches):
            rows = session.scalars(sa.select(JobRow).where(JobRow.batch_id == batch))
            listings[batch] = [(row.id, row.index, row.num_images) for row in rows]
    return listings


def _open_jobs(ledger: Ledger) -> list[str]:
    with ledger.reading() as session:
        open_jobs = sa.select(JobRow.id).where(JobRow.status.in_(_OPEN)).order_by(JobRow.batch_id, JobRow.index)
        return list(session.scalars(open_jobs))


def _known(ledger: Ledger) -> set[str]:
    with ledger.reading() as session:
        return set(session.scalars(sa.select(JobRow.id)))


def _batches(connection: redis.Redis) -> list[str]:
    found: Any = connection.zrange(names.BATCHES, 0, -1)
    return [batch.decode(errors="replace") for batch in found]


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK))

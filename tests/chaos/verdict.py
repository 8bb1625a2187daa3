"""Looks from outside at what harm left: in Redis, in all ledgers, in the store, in what renderers wrote down."""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import redis

from renderkiln.home.store import Store
from renderkiln.home.store.folder import is_part
from renderkiln.schema.jobs import Job, JobStatus

from .fleet import Fleet
from .harm import Record
from .waste import Wasted, find_waste, read_goes
from .watch import Watch
from .work import known_jobs


@dataclass(frozen=True)
class Row:
    """A picture, as one ledger has it."""

    job: str
    k: int
    url: str
    sha256: str


@dataclass
class Verdict:
    """What was found. The lists hold sentences, or ids of jobs; all of them should be empty."""

    jobs: int
    images: int
    #: Not finished at the end by the hub's ledger.
    lost: list[str] = field(default_factory=list)
    #: Recorded twice: two ends as finished, or two pictures for one (job, k).
    twice: list[str] = field(default_factory=list)
    files_without_row: list[str] = field(default_factory=list)
    rows_without_file: list[str] = field(default_factory=list)
    wrong_results: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    in_two_lists: list[str] = field(default_factory=list)
    renderers_left: int = 0
    #: Finished by the hub's ledger alone: Redis was emptied just as their end was to be written there.
    unheard: int = 0
    #: Finished, and done again after Redis was emptied before the hub had heard of it.
    again: int = 0
    #: Rows in workers' own ledgers whose file another machine replaced by its own; only where machines draw unlike.
    overwritten: int = 0
    #: Half-written files that the store's own cleaning removed, as it should.
    cleaned: int = 0
    #: Work done for nothing.
    waste: list[Wasted] = field(default_factory=list)
    #: Seconds from the death of a worker, by fault, until its job was started again; without those deaths after which
    #: Redis was emptied, as what the hub brings back stands behind all that waits.
    recoveries: Mapping[str, float] = field(default_factory=dict)

    @property
    def wasted(self) -> Mapping[str, float]:
        """Work done for nothing, in images' worth of steps, by fault; "" where no fault explains it."""
        found: Counter[str] = Counter()
        for each in self.waste:
            found[each.culprit.fault.id if each.culprit else ""] += each.go.share
        return found

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, and nothing happened twice."""
        return not (
            self.lost
            or self.twice
            or self.files_without_row
            or self.rows_without_file
            or self.wrong_results
            or self.leftovers
            or self.in_two_lists
            or self.renderers_left
        )


def judge(fleet: Fleet, watch: Watch, jobs: Mapping[str, Job], records: Iterable[Record]) -> Verdict:
    """Looks at everything; the workers must have ended."""
    verdict = Verdict(len(jobs), sum(job.num_images for job in jobs.values()))
    records = list(records)
    wipes = [record.struck_at for record in records if record.fault.kind == "server wiped"]
    _judge_ends(verdict, watch, known_jobs(fleet.hub_ledger), jobs, wipes)
    _judge_lists(verdict, fleet.client(), jobs)
    _judge_pictures(verdict, fleet, watch, jobs)
    verdict.waste = find_waste([go for seat in fleet.seats for go in read_goes(seat.control.folder)], records)
    verdict.recoveries = _recoveries(watch, records, wipes)
    verdict.renderers_left = _count_renderers(fleet.root)
    return verdict


def _judge_ends(
    verdict: Verdict, watch: Watch, merged: Mapping[str, str], jobs: Mapping[str, Job], wipes: list[float]
) -> None:
    for job_id in jobs:
        is_heard = watch.status_of(job_id) is JobStatus.FINISHED
        if merged.get(job_id) != JobStatus.FINISHED.value:
            said = "its end was said in Redis" if is_heard else "Redis has no end of it"
            verdict.lost.append(f"{job_id}: {merged.get(job_id)} in the hub's ledger, and {said}")
        verdict.unheard += not is_heard
        finishes = [seen.at for seen, status in watch.ends.get(job_id, []) if status is JobStatus.FINISHED]
        if len(finishes) > 1 and any(finishes[0] < wipe < finishes[-1] for wipe in wipes):
            verdict.again += 1
        elif len(finishes) > 1:
            verdict.twice.append(f"{job_id} ended {len(finishes)} times")


def _judge_lists(verdict: Verdict, client: redis.Redis, jobs: Mapping[str, Job]) -> None:
    """Each job that Redis knows must be in one list, and that the right one."""
    found: dict[str, list[str]] = defaultdict(list)
    for pattern in (
        "rq:queue:renderkiln:*",
        "rq:wip:*",
        "rq:scheduled:*",
        "rq:failed:*",
        "rq:finished:*",
        "rq:canceled:*",
    ):
        for key in client.scan_iter(pattern):
            if client.type(key) not in (b"list", b"zset"):
                continue
            members = client.lrange(key, 0, -1) if client.type(key) == b"list" else client.zrange(key, 0, -1)
            for member in members:
                found[member.decode().partition(":")[0]].append(key.decode())
    verdict.in_two_lists += [f"{job_id}: {keys}" for job_id, keys in found.items() if len(keys) > 1]
    verdict.in_two_lists += [f"{job_id} is not a job of this run" for job_id in found if job_id not in jobs]


def _judge_pictures(verdict: Verdict, fleet: Fleet, watch: Watch, jobs: Mapping[str, Job]) -> None:
    """Files against rows against results: the hub's rows are those that count, and all ledgers together name files."""
    verdict.cleaned = Store(str(fleet.store)).clean(older_than=0)
    files = {str(path): path for path in fleet.store.rglob("*") if path.is_file()}
    verdict.leftovers = [name for name, path in files.items() if is_part(path.name) or path.name.startswith(".")]
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    merged = {(row.job, row.k): row for row in _rows(fleet.hub_ledger)}
    everywhere = [row for ledger in fleet.ledgers for row in _rows(ledger)]
    urls: dict[tuple[str, int], set[str]] = defaultdict(set)
    for row in [*merged.values(), *everywhere]:
        urls[row.job, row.k].add(row.url)
    verdict.twice += [f"{job} {k}: {sorted(found)}" for (job, k), found in urls.items() if len(found) > 1]
    verdict.files_without_row = sorted(set(files) - {row.url for row in merged.values()})
    verdict.rows_without_file = [f"{row}" for row in merged.values() if sums.get(row.url) != row.sha256]
    verdict.rows_without_file += [f"{row}" for row in everywhere if row.url not in files]
    verdict.overwritten = sum(sums.get(row.url) != row.sha256 for row in everywhere)
    for job_id, job in jobs.items():
        result = watch.results.get(job_id)
        if result is None or result.status is not JobStatus.FINISHED:
            continue
        if [image.k for image in result.images] != list(range(job.num_images)):
            verdict.wrong_results.append(f"{job_id}: not all of its images")
        for image in result.images:
            row = merged.get((job_id, image.k))
            if row is None or row.url != image.url:
                verdict.wrong_results.append(f"{job_id} {image.k}: not what the hub's ledger has")
            elif sums.get(image.url) != image.sha256:
                verdict.wrong_results.append(f"{job_id} {image.k}: not the file that its result names")


def _rows(ledger: Path) -> list[Row]:
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=30)) as connection:
        return [Row(*row) for row in connection.execute("SELECT job_id, k, url, sha256 FROM images")]


def _recoveries(watch: Watch, records: list[Record], wipes: list[float]) -> dict[str, float]:
    found = {}
    for record in records:
        if not record.killed or record.job is None:
            continue
        starts = [seen.at - record.struck_at for seen in watch.starts[record.job] if seen.at > record.struck_at]
        ends = [seen.at - record.struck_at for seen, _ in watch.ends[record.job]]
        if any(end <= 0.05 for end in ends):
            continue  # it had ended just before
        next_end = min(ends, default=float("inf"))  # that comes first where the job is set aside
        if not starts or min(starts) >= next_end:
            continue
        if not any(record.struck_at - 1 < wipe < record.struck_at + min(starts) for wipe in wipes):
            found[record.fault.id] = min(starts)
    return found


def _count_renderers(root: Path) -> int:
    import psutil

    count = 0
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        count += "tests.chaos.engine" in line and any(str(root) in part for part in line)
    return count

"""A worker's ledger told by hand, beside a hub and a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from tests.fakes import image_of

from renderkiln.home.folder import DataFolder
from renderkiln.home.ledger import Ledger
from renderkiln.producer.hub.service import Hub
from renderkiln.schema.jobs import ImageResult, Job, JobOptions, JobStatus, make_job
from renderkiln.schema.spec import RenderSpec


def a_job(number: int, batch: str = "cats-1", **options: object) -> Job:
    spec = RenderSpec(prompt=f"cat {number}", model="tiny", seed=number)
    return make_job(spec, JobOptions(**options), batch=batch, index=number)  # type: ignore[arg-type]


def do(ledger: Ledger, job: Job, execution: str, worker: str, fence: int, image: ImageResult | None = None) -> None:
    """A whole attempt at a job of one image, as a worker tells its ledger of it."""
    ledger.attempt_started(job, execution, 1, worker, fence)
    ledger.image_recorded(job.id, image or image_of(job), execution)
    ledger.attempt_ended(job.id, execution, "finished", status=JobStatus.FINISHED)


@pytest.fixture
def open_ledger(tmp_path: Path) -> Iterator[Callable[[str], Ledger]]:
    made: list[Ledger] = []

    def open_(name: str, *, strict: bool = True) -> Ledger:
        made.append(Ledger(tmp_path / f"{name}.db", strict=strict))
        return made[-1]

    yield open_
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[[str], Ledger]) -> Ledger:
    """A worker's."""
    made = open_ledger("ledger")
    made.worker_started("mini-1", "mini", 7, {})
    return made


@pytest.fixture
def make_hub(connection: redis.Redis, tmp_path: Path) -> Iterator[Callable[[], Hub]]:
    """Makes hubs of one data folder, one after the other."""
    made: list[Hub] = []

    def make() -> Hub:
        made.append(Hub(connection, DataFolder(tmp_path / "hub"), settling=0.0))
        return made[-1]

    yield make
    for hub in made:
        hub.close()


@pytest.fixture
def hub(make_hub: Callable[[], Hub]) -> Hub:
    return make_hub()

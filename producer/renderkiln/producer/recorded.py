"""What this machine's ledgers know of jobs that Redis has forgotten: its workers', and that of a hub that runs here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING

from renderkiln.home.folder import DataFolder
from renderkiln.schema.jobs import Attempt, JobResult

if TYPE_CHECKING:
    from renderkiln.home.ledger import Ledger


def recorded_of(folder: DataFolder, job_ids: Sequence[str]) -> dict[str, JobResult]:
    """What the ledgers have of these jobs; of a job that several have, what came of it where one knows."""
    found: dict[str, JobResult] = {}
    with _ledgers(folder) as ledgers:
        for ledger in ledgers:
            _add(found, (result for job_id in job_ids if (result := ledger.result(job_id)) is not None))
    return found


def recorded_results(folder: DataFolder, what: str) -> list[JobResult]:
    """What the ledgers have of a batch or a job; empty where they have nothing, or there are none."""
    found: dict[str, JobResult] = {}
    with _ledgers(folder) as ledgers:
        for ledger in ledgers:
            one = ledger.result(what)
            _add(found, [one] if one else ledger.batch_results(what))
    return list(found.values())


def recorded_attempts(folder: DataFolder, job_id: str) -> tuple[dict[str, Attempt], JobResult | None]:
    """The attempts at a job, by execution id, and what came of it."""
    attempts: dict[str, Attempt] = {}
    with _ledgers(folder) as ledgers:
        for ledger in ledgers:
            attempts |= {attempt.execution_id: attempt for attempt in ledger.attempts_of(job_id)}
    return attempts, recorded_of(folder, [job_id]).get(job_id)


def _add(found: dict[str, JobResult], results: Iterable[JobResult]) -> None:
    """Adds what another ledger has, where none has told what came of a job."""
    for result in results:
        if result.job_id not in found or not found[result.job_id].status.is_final:
            found[result.job_id] = result


@contextmanager
def _ledgers(folder: DataFolder) -> Iterator[list[Ledger]]:
    """Those that are there. The hub's first, which knows the whole of a batch; the workers' own may know the latest."""
    from renderkiln.home.ledger import Ledger

    with ExitStack() as stack:
        yield [
            stack.enter_context(closing(Ledger(path))) for path in (folder.hub_ledger, folder.ledger) if path.is_file()
        ]

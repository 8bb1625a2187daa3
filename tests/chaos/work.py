"""The jobs of a run, and keeping the queue filled while harm is done."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tests.pretend.engine import SIDE

from renderkiln.producer.enqueue import enqueue
from renderkiln.schema.errors import ServerUnavailableError
from renderkiln.schema.jobs import Job, JobOptions, make_job
from renderkiln.schema.spec import RenderSpec

from .fleet import MODEL, Fleet
from .watch import Watch

#: Jobs of a list.
LIST = 12


class Work:
    """Makes jobs, lists of them, and queues them; remembers all of them."""

    def __init__(self, fleet: Fleet, watch: Watch, seed: int) -> None:
        self._fleet, self._watch = fleet, watch
        self._client = fleet.client()
        self._chance, self._seed = random.Random(seed), seed
        self._lock = threading.Lock()
        self.jobs: dict[str, Job] = {}
        self._lists = 0
        self._submitting, self._queued = threading.Lock(), list[str]()

    def next_list(self) -> list[Job]:
        """Jobs that nobody has queued yet; they count from here on."""
        with self._lock:
            batch = f"list-{self._lists}"
            self._lists += 1
            jobs, index = [], 0
            for number in range(LIST):
                spec = RenderSpec(
                    model=MODEL,
                    prompt=f"{self._seed}: drawing {number} of {batch}",
                    seed=self._chance.randrange(1 << 31),
                    num_inference_steps=self._chance.randint(4, 8),
                    width=SIDE,
                    height=SIDE,
                )
                images = self._chance.choice([1, 1, 2, 2, 3, 4])
                # Killed renderers are failures, and this is not about those.
                options = JobOptions(num_images=images, max_attempts=20)
                jobs.append(make_job(spec, options, batch=batch, index=index))
                index += images
            self.jobs |= {job.id: job for job in jobs}
            return jobs

    def queue(self, jobs: Sequence[Job]) -> None:
        """Queues jobs of one list, and again where the server went away: that is what its error says to do."""
        for _ in range(1000):
            try:
                with self._submitting:
                    enqueue(self._client, jobs, jobs[0].batch, "chaos")
                    self.note_queued(jobs)
                return
            except ServerUnavailableError:
                time.sleep(0.2)
        raise ServerUnavailableError("the server does not come back")

    def note_queued(self, jobs: Sequence[Job]) -> None:
        """These were queued, by us or by another process."""
        self._queued.extend(job.id for job in jobs)

    def count_open(self) -> int:
        return len(self.jobs) - self._watch.count_ended()

    def wipe(self) -> bool:
        """Empties the server, once the hub has heard of all that was submitted: it promises nothing of the rest.

        Whether it came to that.
        """
        with self._submitting:
            deadline = time.monotonic() + 60
            while not set(self._queued) <= set(known_jobs(self._fleet.hub_ledger)):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
            self._client.flushall()
            return True


def known_jobs(ledger: Path) -> dict[str, str]:
    """The jobs that a ledger knows, with their status."""
    if not ledger.exists():
        return {}
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            return dict(connection.execute("SELECT id, status FROM jobs"))
        except sqlite3.OperationalError:  # it is being made
            return {}

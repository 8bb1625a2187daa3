"""The jobs of a run, and keeping the queue filled while harm is done."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from renderkiln.producer.enqueue import enqueue
from renderkiln.schema.errors import ServerUnavailableError
from renderkiln.schema.jobs import Job, JobOptions, JobStatus, make_job
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
                    width=64,
                    height=64,
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
                enqueue(self._client, jobs, jobs[0].batch, "chaos")
                return
            except ServerUnavailableError:
                threading.Event().wait(0.2)
        raise ServerUnavailableError("the server does not come back")

    def count_open(self) -> int:
        return len(self.jobs) - self._watch.count_ended()

    def bring_back(self) -> int:
        """After the server was wiped: queues what it has not said to be finished; how many.

        This stands in for a repair pass, until there is one.
        """
        by_batch: dict[str, list[Job]] = {}
        with self._lock:
            missing = [job for job in self.jobs.values() if self._watch.status_of(job.id) is not JobStatus.FINISHED]
        for job in missing:
            by_batch.setdefault(job.batch, []).append(job)
        for jobs in by_batch.values():
            self.queue(jobs)
        return len(missing)

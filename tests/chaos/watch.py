"""What is seen while harm is done: every durable event with the moment at which it came, and who holds which job."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass

import redis

from renderkiln.schema import names
from renderkiln.schema.events import Ended, Returned, Started, parse_event
from renderkiln.schema.jobs import JobResult, JobStatus


@dataclass(frozen=True)
class Seen:
    """A job was started, or ended, at a moment of the monotonic clock."""

    at: float
    worker: str


class Watch:
    """Reads the stream of events in a thread of its own; survives the server's deaths."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.starts: dict[str, list[Seen]] = defaultdict(list)
        self.ends: dict[str, list[tuple[Seen, JobStatus]]] = defaultdict(list)
        #: The result of each job's last end.
        self.results: dict[str, JobResult] = {}
        #: Ends as failed: kind, message, job.
        self.failures: list[tuple[str, str, str]] = []
        self._holds: dict[str, str] = {}
        self._last: dict[str, JobStatus] = {}
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def job_of(self, worker: str) -> str | None:
        """The job that a worker has started and not ended."""
        with self._changed:
            return self._holds.get(worker)

    def wait_for_start(self, worker: str, timeout: float) -> bool:
        """Waits until a worker has a job in hand."""
        with self._changed:
            return self._changed.wait_for(lambda: worker in self._holds, timeout)

    def forget(self, worker: str) -> None:
        """A worker is started anew: what the one before it held, it does not."""
        with self._changed:
            self._holds.pop(worker, None)

    def status_of(self, job_id: str) -> JobStatus | None:
        """How a job ended last; None where it has not, or was started again since."""
        with self._changed:
            return self._last.get(job_id)

    def count_ended(self) -> int:
        with self._changed:
            return len(self._last)

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        last = "0-0"
        while not self._over.is_set():
            try:
                reply = self._client.xread({names.EVENTS: last}, count=500, block=200)
            except redis.RedisError:
                time.sleep(0.02)
                continue
            now = time.monotonic()
            for _, entries in reply or []:
                for identity, fields in entries:
                    last = identity.decode()
                    self._note(now, fields[b"event"])

    def _note(self, now: float, text: bytes) -> None:
        event = parse_event(text)
        with self._changed:
            if isinstance(event, Started):
                self.starts[event.job_id].append(Seen(now, event.worker))
                self._last.pop(event.job_id, None)
                for holder in [each for each, job_id in self._holds.items() if job_id == event.job_id]:
                    del self._holds[holder]
                self._holds[event.worker] = event.job_id
            elif isinstance(event, Ended):
                result = event.result
                self.ends[result.job_id].append((Seen(now, result.worker), result.status))
                self._last[result.job_id], self.results[result.job_id] = result.status, result
                self._let_go(result.worker, result.job_id)
                if result.failure is not None:
                    self.failures.append((result.failure.kind, result.failure.message, result.job_id))
            elif isinstance(event, Returned):
                self._let_go(event.worker, event.job_id)
            self._changed.notify_all()

    def _let_go(self, worker: str, job_id: str) -> None:
        if self._holds.get(worker) == job_id:
            del self._holds[worker]

"""Every name that renderkiln uses in Redis, in one place.

RQ adds its own prefixes (`rq:queue:`, `rq:job:`, `rq:workers`) to the queue names and job ids given here.
"""

from __future__ import annotations

#: The one function that a worker runs, as RQ names it. It is an allow-list of one: nothing is imported by this name.
RENDER_FUNCTION = "renderkiln.render"

#: Stream of durable events; each entry has one field, `event`.
EVENTS = "renderkiln:events"
#: Entries kept, about: enough for a client to catch up on a night, small enough to forget.
EVENTS_LENGTH = 100_000
#: Channel of progress events.
PROGRESS = "renderkiln:progress"
#: Sorted set of batch ids by time of submission (seconds since 1970).
BATCHES = "renderkiln:batches"
#: Seconds for which a job's result stays in Redis: a week.
RESULT_TTL = 7 * 86400
#: Seconds for which a batch is listed after it was last submitted: a quarter of a year.
BATCH_TTL = 90 * 86400
#: Seconds for which an init image stays in Redis after it was last submitted.
BLOB_TTL = 30 * 86400


#: What the name of each of our queues begins with.
QUEUES = "renderkiln:"


def queue(priority: str, model: str) -> str:
    """The queue of one priority and one model."""
    return f"{QUEUES}{priority}:{model}"


def batch(batch_id: str) -> str:
    """Hash of a batch: name, created_at, num_jobs, num_images."""
    return f"renderkiln:batch:{batch_id}"


def batch_jobs(batch_id: str) -> str:
    """Sorted set of a batch's job ids by their index."""
    return f"renderkiln:batch:{batch_id}:jobs"


def images(job_id: str) -> str:
    """Hash of an unfinished job's pictures that are recorded already: each as JSON, by its number within the job."""
    return f"renderkiln:images:{job_id}"


def blob(sha256: str) -> str:
    """An init image or mask, by the SHA-256 of its bytes."""
    return f"renderkiln:blob:{sha256}"


def worker(name: str) -> str:
    """JSON that a live worker announces (models, host, engine, pid); expires with its lease."""
    return f"renderkiln:worker:{name}"


#: Sorted set of workers' names by the time of their last announcement (seconds since 1970): an index, because a SCAN
#: would walk over all jobs.
WORKERS = "renderkiln:workers"


def set_aside(key: str) -> str:
    """Where a key of the wrong type is moved to, out of the way of what is to stand there; kept for a week."""
    return f"renderkiln:set-aside:{key}"


#: Field of a job's hash that asks its worker to stop it.
CANCEL_FIELD = "renderkiln_cancel"
#: Field of the same: its worker is writing down how it ended, and a cancel comes too late.
ENDING_FIELD = "renderkiln_ending"
#: Field of the same: the end of what was logged during its last failed attempt.
LOG_FIELD = "renderkiln_log"

#: Number in a job's meta that grows with each queueing and each claim of it; see `records`.
FENCE = "fence"

#: Stream in which workers' ledgers tell the hub what changed (`records.Shipment`, in the field `shipment`). It is there
#: from the hub's first start on; until then nothing is kept. What the hub has taken over is cut off.
RECORDS = "renderkiln:records"
#: The consumer group in which the hub reads it.
RECORDS_GROUP = "hub"
#: Random text, another one whenever the stream was made anew.
RECORDS_EPOCH = "renderkiln:records:epoch"
#: Hash: up to which revision the hub has taken over each ledger.
RECORDS_READ = "renderkiln:records:read"
#: Name of the hub that is up; expires.
HUB = "renderkiln:hub"

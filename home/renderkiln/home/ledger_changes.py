"""What workers tell a ledger, as SQL that is built once: building it anew took longer than running it."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from renderkiln.schema.jobs import Job
from renderkiln.schema.tables import Base

_TABLES = Base.metadata.tables
_ABOUT, _BATCHES, _JOBS = _TABLES["ledger_about"], _TABLES["batches"], _TABLES["jobs"]
_ATTEMPTS, _IMAGES, _WORKERS = _TABLES["attempts"], _TABLES["images"], _TABLES["workers"]


def _insert_or_replace(table: sa.Table, key: tuple[str, ...], names: tuple[str, ...], where: Any = None) -> Any:
    """Writes a row; of one that is there these columns, where it says so."""
    statement = insert(table)
    return statement.on_conflict_do_update(
        index_elements=list(key),
        set_={name: statement.excluded[name] for name in names},
        where=None if where is None else where(statement.excluded),
    )


#: Counts a change and gives its number.
COUNT = sa.update(_ABOUT).values(revision=_ABOUT.c.revision + 1).returning(_ABOUT.c.revision)

WORKER_STARTED = _insert_or_replace(_WORKERS, ("name",), ("host", "pid", "started_at", "ended_at", "about", "revision"))
WORKER_ENDED = (
    sa.update(_WORKERS)
    .where(_WORKERS.c.name == sa.bindparam("of_name"))
    .values(ended_at=sa.bindparam("new_ended_at"), revision=sa.bindparam("new_revision"))
)

BATCH_SEEN = insert(_BATCHES).on_conflict_do_nothing()
JOB_STARTED = _insert_or_replace(
    _JOBS, ("id",), ("status", "failure_kind", "failure_message", "ended_at", "fence", "revision")
)
#: Closes attempts of a job that a crash left open.
ABANDONED = (
    sa.update(_ATTEMPTS)
    .where(_ATTEMPTS.c.job_id == sa.bindparam("of_job"), _ATTEMPTS.c.ended_at.is_(None))
    .values(ended_at=sa.bindparam("new_ended_at"), outcome="abandoned", revision=sa.bindparam("new_revision"))
)
ATTEMPT_STARTED = sa.insert(_ATTEMPTS)

#: One that is recorded already is left as it is, unless its file is another one now.
IMAGE_RECORDED = _insert_or_replace(
    _IMAGES,
    ("job_id", "k"),
    ("url", "sha256", "size_bytes", "notes", "execution_id", "recorded_at", "revision"),
    lambda new: sa.or_(_IMAGES.c.url != new.url, _IMAGES.c.sha256 != new.sha256),
)

#: What an attempt came to: its columns beside its key, each given by its name.
_END = (
    "ended_at",
    "outcome",
    "revision",
    "failure_kind",
    "failure_message",
    "load_seconds",
    "render_seconds",
    "write_seconds",
    "peak_bytes",
    "loads",
    "evictions",
    "log",
)
ATTEMPT_ENDED = (
    sa.update(_ATTEMPTS)
    .where(_ATTEMPTS.c.execution_id == sa.bindparam("of_execution"), _ATTEMPTS.c.ended_at.is_(None))
    .values({name: sa.bindparam(f"new_{name}") for name in _END})
)
JOB_ENDED = (
    sa.update(_JOBS)
    .where(_JOBS.c.id == sa.bindparam("of_job"))
    .values(
        {
            name: sa.bindparam(f"new_{name}")
            for name in ("status", "ended_at", "revision", "failure_kind", "failure_message")
        }
    )
)


def columns_of(job: Job) -> dict[str, Any]:
    """What a job's row has of the job itself."""
    return {
        "id": job.id,
        "batch_id": job.batch,
        "index": job.index,
        "spec_digest": job.spec.digest,
        "model": job.spec.model,
        "prompt": job.spec.prompt,
        "num_images": job.num_images,
        "job": job.model_dump(mode="json"),
    }


def end_of_attempt(**values: Any) -> dict[str, Any]:
    """The parameters of `ATTEMPT_ENDED`; what is not given is not known."""
    unknown = values.keys() - {*_END}
    assert not unknown, unknown
    return {f"new_{name}": values.get(name) for name in _END}

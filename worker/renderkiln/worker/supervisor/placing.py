"""Where a job may be tried next: notes in its meta, read when it is taken. What they say is pure; others bring facts.

A job's meta is written by whoever can write to Redis, so a note that is not in its form counts as none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from renderkiln.schema.workers import WorkerInfo

from .fates import NO_WAIT_IS_LONGER

#: Names of workers that failed the job, of which the last so many are kept. One that so many failed is anybody's.
MOST_NAMES = 16
#: Seconds beyond its wait for which a job is left to the worker that may still hold its pictures.
KEPT_FOR = 60.0
_FAILED_ON, _KEPT_ON, _KEPT_UNTIL = "failed_on", "kept_on", "kept_until"


def note_failed_on(meta: dict[str, Any], name: str) -> None:
    """Notes that a worker failed the job."""
    names = [each for each in _names(meta) if each != name]
    meta[_FAILED_ON] = [*names, name][-MOST_NAMES:]


def note_kept_on(meta: dict[str, Any], name: str, until: float) -> None:
    """Notes that the job is to be a worker's until a time in seconds since 1970."""
    meta[_KEPT_ON], meta[_KEPT_UNTIL] = name, until


def forget_kept(meta: dict[str, Any]) -> None:
    """The job has been tried since."""
    meta.pop(_KEPT_ON, None)
    meta.pop(_KEPT_UNTIL, None)


def is_placed(meta: Mapping[str, Any], name: str, now: float) -> bool:
    """Whether the notes may keep a worker from the job. Where they do not, nobody needs to ask who else is there."""
    return name in _names(meta) or _keeper(meta, name, now) is not None


def better_placed(
    meta: Mapping[str, Any], name: str, model: str, workers: Iterable[WorkerInfo], now: float
) -> list[str]:
    """The workers whose job it is rather than this one's, by the notes; empty where it may take the job.

    Args:
        workers: those that are alive.
    """
    able = {worker.name for worker in workers if model in worker.models and worker.state != "unwell"} - {name}
    keeper = _keeper(meta, name, now)
    if keeper is not None:
        return [keeper] if keeper in able else []
    failed = _names(meta)
    return sorted(able.difference(failed)) if name in failed and len(failed) < MOST_NAMES else []


def _names(meta: Mapping[str, Any]) -> list[str]:
    found = meta.get(_FAILED_ON)
    if not isinstance(found, list):
        return []
    return [each for each in found if isinstance(each, str)][-MOST_NAMES:]


def _keeper(meta: Mapping[str, Any], name: str, now: float) -> str | None:
    """Another worker for which the job is kept still."""
    keeper, until = meta.get(_KEPT_ON), meta.get(_KEPT_UNTIL)
    is_kept = isinstance(keeper, str) and isinstance(until, (int, float)) and now < until < now + NO_WAIT_IS_LONGER
    return keeper if is_kept and keeper != name else None

"""Who is there to render: the workers that are alive, and whether any of them has a model."""

from __future__ import annotations

from typing import Any

import redis
from pydantic import ValidationError

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model
from renderkiln.schema import names
from renderkiln.schema.errors import ModelNotFoundError, did_you_mean
from renderkiln.schema.workers import WorkerInfo


def live_workers(connection: redis.Redis) -> list[WorkerInfo]:
    """The workers that have given a sign of life within their lease, by name."""
    listed: Any = connection.zrange(names.WORKERS, 0, -1)
    if not listed:
        return []
    found = []
    for text in connection.mget([names.worker(name.decode()) for name in sorted(listed)]):
        try:
            if text is not None:
                found.append(WorkerInfo.model_validate_json(text))
        except ValidationError:
            continue  # announced by a later version: it still works, we just cannot say what it has
    return found


def check_model(connection: redis.Redis, folder: DataFolder, model: str, *, local: bool) -> None:
    """Refuses a model that nobody has, as far as can be known here.

    Live workers know best. Where none is up, the models of this machine count if the worker will be on this machine
    (`local`); otherwise the job is queued for a worker to come.

    Raises:
        ModelNotFoundError: with the nearest names.
    """
    workers = live_workers(connection)
    offered = sorted({name for worker in workers for name in worker.models})
    if model in offered:
        return
    if local:
        find_model(folder, model)
    elif workers:
        raise ModelNotFoundError(
            f"model {model!r} is on none of the {len(workers)} workers that are up.{did_you_mean(model, offered)} "
            f"They have: {', '.join(offered) or 'none'}."
        )

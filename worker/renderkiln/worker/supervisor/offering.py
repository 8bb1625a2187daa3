"""Which models a worker listens for."""

from __future__ import annotations

import logging

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import installed_models
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import ModelNotFoundError, ModelTooLargeError, did_you_mean
from renderkiln.worker.models.memory import why_too_large

log = logging.getLogger("renderkiln.supervisor")


def models_to_offer(
    folder: DataFolder, named: tuple[str, ...], warm: str | None, settings: Settings, limit_bytes: int
) -> tuple[str, ...]:
    """The models that were named, or all that are here; but none that cannot fit in memory.

    Args:
        warm: one that is to be loaded at start.
        limit_bytes: of memory.

    Raises:
        ModelNotFoundError: one that was named is not here, or none is.
        ModelTooLargeError: one that was named does not fit, or none does.
    """
    here = {model.name: model.path for model in installed_models(folder)}
    for name in named:
        if name not in here:
            raise ModelNotFoundError(f"model {name!r} is not on this machine.{did_you_mean(name, here)}")
    if not here:
        raise ModelNotFoundError("there is no model on this machine; get one with `renderkiln models pull`.")
    fitting, reason = [], ""
    for name in named or here:
        reason = why_too_large(name, here[name], settings, limit_bytes) or ""
        if not reason:
            fitting.append(name)
        elif name in named or name == warm:
            raise ModelTooLargeError(reason)
        else:
            log.warning("%s This worker does not listen for it.", reason)
    if not fitting:
        raise ModelTooLargeError(reason)
    return tuple(fitting)

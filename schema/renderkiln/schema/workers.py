"""What a live worker says of itself, for producers, for `renderkiln status`, and for whoever starts another worker."""

from __future__ import annotations

from typing import Literal

from .spec import Frozen, ModelName


class WorkerInfo(Frozen):
    """A worker's announcement: it expires with the worker's lease, so one that can be read is alive."""

    schema_version: Literal[1] = 1
    name: str
    host: str
    pid: int
    models: tuple[ModelName, ...]
    engine: str
    device: str
    store: str
    state: Literal["starting", "idle", "busy"] = "starting"
    started_at: float

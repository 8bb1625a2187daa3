"""How an attempt at a job went, and what a heartbeat found out meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from renderkiln.schema.jobs import Failure, ImageResult
from renderkiln.worker.protocol import MemoryUse


class Beat(Enum):
    """What a heartbeat found out."""

    GOING_ON = "going on"
    #: Somebody asked for the job to be canceled.
    CANCEL = "cancel"
    #: The lease ran out and the job is no longer this attempt's.
    LOST = "lost"


@dataclass
class Outcome:
    """How an attempt ended. With no failure and no flag, the job is done."""

    images: dict[int, ImageResult] = field(default_factory=dict)
    failure: Failure | None = None
    canceled: bool = False
    given_back: bool = False
    #: Another worker has the job; nothing more is this one's to say.
    lost: bool = False
    #: Memory ran out, or the renderer was killed as whoever takes too much of it is.
    ran_out: bool = False
    #: The job is tried again with less memory: what is to be different, as a sentence.
    tightened: str | None = None
    #: What it took, where the renderer lived to tell.
    memory: MemoryUse | None = None
    load_seconds: float = 0.0
    render_seconds: float = 0.0
    write_seconds: float = 0.0

    #: What was logged meanwhile, where it failed.
    log: str = ""

    @property
    def is_done(self) -> bool:
        return self.failure is None and not (self.canceled or self.given_back or self.lost)

    @property
    def timings(self) -> dict[str, float]:
        names = ("load_seconds", "render_seconds", "write_seconds")
        return {name: round(getattr(self, name), 6) for name in names}

    @property
    def memory_taken(self) -> dict[str, int] | None:
        if self.memory is None:
            return None
        return {name: getattr(self.memory, name) for name in ("peak_bytes", "loads", "evictions")}

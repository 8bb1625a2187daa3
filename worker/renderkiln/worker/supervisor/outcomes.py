"""How an attempt at a job went, and what a heartbeat found out meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from rq.executions import Execution
from rq.job import Job as RqJob

from renderkiln.schema.errors import RenderkilnError
from renderkiln.schema.jobs import Failure, ImageResult, Job
from renderkiln.worker.protocol import MemoryUse


class Beat(Enum):
    """What a heartbeat found out."""

    GOING_ON = "going on"
    #: Somebody asked for the job to be canceled.
    CANCEL = "cancel"
    #: The lease ran out and the job is no longer this attempt's.
    LOST = "lost"


@dataclass(frozen=True)
class Current:
    """The attempt at hand."""

    rq_job: RqJob
    job: Job
    number: int
    execution: Execution
    #: See `names.FENCE`.
    fence: int
    #: Whether somebody had begun the job before.
    resumes: bool = False


@dataclass
class Outcome:
    """How an attempt ended. With no failure and no flag, the job is done."""

    images: dict[int, ImageResult] = field(default_factory=dict)
    failure: Failure | None = None
    canceled: bool = False
    given_back: bool = False
    #: Another worker has the job; nothing more is this one's to say.
    lost: bool = False
    #: A store or a ledger is full or away, which is no fault of the job: it goes back behind the others and uses up no
    #: attempt. What is rendered and not in the store is in the spool of this machine.
    held_up: bool = False
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
        return self.failure is None and not (self.canceled or self.given_back or self.lost or self.held_up)

    def hold_up(self, error: RenderkilnError) -> None:
        """Ends it, after all, as one that could not be written down."""
        self.held_up, self.failure, self.canceled = True, Failure(kind=error.kind, message=str(error)), False

    @property
    def timings(self) -> dict[str, float]:
        names = ("load_seconds", "render_seconds", "write_seconds")
        return {name: round(getattr(self, name), 6) for name in names}

    @property
    def memory_taken(self) -> dict[str, int] | None:
        if self.memory is None:
            return None
        return {name: getattr(self.memory, name) for name in ("peak_bytes", "loads", "evictions")}

"""What the command and the process that converts one stage tell each other: a job down, events up, as lines of JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from ..runtimes.manifest import CheckReport, PackageInfo
from .facts import Family
from .options import Lora
from .plan import StagePlan
from .source import Source

#: What a stage goes through, and about which share of its time is gone when it begins.
PHASES = {
    "waiting": 0.0,
    "loading": 0.0,
    "running the original": 0.1,
    "tracing": 0.25,
    "converting": 0.35,
    "checking": 0.7,
    "compressing": 0.8,
    "cutting in two": 0.9,
    "hashing": 0.97,
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageJob(_Record):
    """One stage to convert."""

    plan: StagePlan
    source: Source
    family: Family
    loras: tuple[Lora, ...] = ()
    recipe: Path | None = None
    check: bool = True
    #: Also where the runtime that this system has takes hours for it.
    check_slowly: bool = False
    random_inputs: int = Field(default=2, ge=1)
    #: An empty folder, on the disk of the target: the packages go into it, and everything temporary does.
    folder: Path


class Phase(_Record):
    """The stage has come to this."""

    event: Literal["phase"] = "phase"
    phase: str
    done: int = 0
    of: int = 0


class Done(_Record):
    """The packages are there."""

    event: Literal["done"] = "done"
    packages: tuple[PackageInfo, ...]
    bits: float
    check: CheckReport | None
    seconds: float
    #: The largest resident set that the process has had.
    peak_bytes: int


class Failed(_Record):
    """The stage failed with an error of ours."""

    event: Literal["failed"] = "failed"
    kind: str
    message: str


Event = Annotated[Phase | Done | Failed, Field(discriminator="event")]
EVENTS: TypeAdapter[Phase | Done | Failed] = TypeAdapter(Event)

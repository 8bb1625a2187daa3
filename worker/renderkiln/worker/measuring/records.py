"""What is measured of a model in one form, and what the measuring process and its parent say to each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..runtimes.apple.plan import Device


@dataclass(frozen=True)
class Candidate:
    """One way to render a model here."""

    engine: Literal["coreml", "coreai", "torch"]
    #: Both of a converted model: one of `layout.VARIANTS`; a `ComputeUnit`.
    variant: str = ""
    unit: str = ""

    @property
    def is_converted(self) -> bool:
        """Whether it is a converted form."""
        return self.engine != "torch"

    def __str__(self) -> str:
        return f"{self.variant} on {self.unit}" if self.is_converted else self.engine


@dataclass(frozen=True)
class Order:
    """What the measuring process is to do."""

    model: str
    data_dir: Path
    candidate: Candidate
    #: Denoising steps of each picture, at least 2, and pictures after the first.
    steps: int = 20
    runs: int = 3
    #: Of the torch engine; see `EngineChoice`.
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Progress:
    """Where a measurement is. `done`: pictures, the load counted as one."""

    what: str
    done: float


@dataclass(frozen=True)
class StageShares:
    """Where Core ML means to compute a package; shares of its estimated cost, from 0 to 1."""

    devices: Mapping[Device, float]
    #: The operations that are meant for the CPU, by their kind, the costliest first.
    on_cpu: Mapping[str, float]


@dataclass(frozen=True)
class Compiled:
    """Core ML had to compile something: this process has loaded the model, and measured nothing more."""

    #: What compiling and loading took.
    load_seconds: float


@dataclass(frozen=True)
class Numbers:
    """What was measured. Seconds are wall time."""

    #: As the engine says it: a compute unit, or mps, cuda or cpu.
    device: str
    dtype: str
    width: int
    height: int
    #: Denoising steps that were run for each picture; some schedulers add some to those asked for.
    steps: int
    #: Loading all stages that a worker loads at its start, compiled before where they are compiled.
    load_seconds: float
    #: The first picture after loading, and those after it, each from its prompt to its pixels.
    first_seconds: float
    latencies: tuple[float, ...]
    latency_seconds: float
    #: Denoising steps a second, the median of the runs: from the end of the first step to the end of the last, so that
    #: text encoder and decoder are left out, and with them the first step, whose beginning cannot be told from theirs.
    iterations_per_second: float
    #: The largest resident set that the process has had. What the GPU and the Neural Engine take besides is not in it.
    peak_bytes: int
    #: How near the self-test picture is to the stored one, in decibels; None where none is stored.
    likeness: float | None
    #: By stage, on macOS; of a stage in two chunks, each.
    shares: Mapping[str, StageShares] = field(default_factory=dict)
    #: Why there are no shares, where there could be.
    no_shares: str = ""
    #: Of the libraries that decide speed and pixels.
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a form is not to be used. `kind`: of an error in `renderkiln.schema.errors`."""

    kind: str
    message: str


Answer = Compiled | Numbers | Failure


@dataclass(frozen=True)
class Measurement:
    """A form, and what came of measuring it: numbers, or a failure."""

    candidate: Candidate
    numbers: Numbers | None = None
    failure: Failure | None = None
    #: Compiling and loading, where this measurement was the first to do it.
    cold_load_seconds: float | None = None
    #: Whether the Neural Engine's compiler refused a part of the model, which then runs elsewhere.
    refused: bool = False

    def as_json(self) -> dict[str, Any]:
        """For `--json` and for the ledger."""
        return {
            "engine": self.candidate.engine,
            "variant": self.candidate.variant,
            "compute_unit": self.candidate.unit,
            "cold_load_seconds": self.cold_load_seconds,
            "refused_by_neural_engine": self.refused,
            "numbers": asdict(self.numbers) if self.numbers else None,
            "failure": asdict(self.failure) if self.failure else None,
        }

"""What supervisor and renderer say to each other, over a private pipe between a process and its child.

The supervisor sends `WarmUp`, `Render`, `GoOn` and `Cancel`; the renderer answers a `WarmUp` with `Ready` or
`NotReady`, and a `Render` with any number of `Step` and `Picture` and then exactly one of `Done` or `Failed`. After
each `Picture` but the last it begins nothing until it hears `GoOn`.

One order at a time: the next `WarmUp` or `Render` is sent only after the last answer to the one before. So nobody ever
waits to write to somebody who waits to write, and an answer is always to the order at hand. A `Cancel` may come at any
time; too late, it is ignored, and so is a `GoOn`.

Of memory they talk over a second pipe, a pair of datagram sockets with one JSON object in each: the supervisor sends
`Pressure` whenever the system's has changed, and the renderer `Resident` whenever it loaded or dropped a stage. These
may come at any time, wait for no answer, and may be lost when nobody reads.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from renderkiln.schema.workers import MemoryPolicy

#: A variant and a compute unit.
FormName = tuple[str, str]
#: Of a model that torch renders in full precision, since half gave broken pictures of it.
FULL_PRECISION: FormName = ("float32", "torch")


@dataclass(frozen=True)
class RendererConfig:
    """What a renderer is started with; travels as JSON on its command line."""

    data_dir: str
    engine: str
    device: str
    dtype: str
    compute_unit: str = "auto"
    variant: str = "auto"
    #: Images of a job that are denoised before the VAE is loaded, where both do not fit.
    denoise_ahead: int = 8
    #: Of encoded prompts that are kept, in memory and on disk.
    embeddings_memory: int = 64_000_000
    embeddings_disk: int = 0


@dataclass(frozen=True)
class StageMeasured:
    """What a stage was seen to take."""

    size_bytes: int
    load_seconds: float
    #: The most beside its weights, and the pixels of the image at which it was.
    working_bytes: int
    pixels: int


@dataclass(frozen=True)
class MemoryOrder:
    """How much memory a model may take; see `memory.planning`.

    Attributes:
        step: how often memory ran out with this model: `planning.tighten`.
        known: what was measured of its stages on this machine.
    """

    policy: MemoryPolicy = "resident"
    budget_bytes: int | None = None
    step: int = 0
    known: Mapping[str, StageMeasured] = field(default_factory=dict)


@dataclass(frozen=True)
class MemoryUse:
    """What an order took.

    Attributes:
        peak_bytes: the most that the renderer held meanwhile.
        loads, load_seconds, evictions: stages loaded, how long the work waited for that, stages dropped to make room.
        measured: what is known of the model's stages now, and, as `sizes.RENDERER`, of the process around them.
    """

    peak_bytes: int
    loads: int
    load_seconds: float
    evictions: int
    measured: Mapping[str, StageMeasured] = field(default_factory=dict)


@dataclass(frozen=True)
class WarmUp:
    """Load this model and render one step, so that the first job does not wait for it. For the rest see `Render`."""

    model: str
    form: FormName | None = None
    memory: MemoryOrder = field(default_factory=MemoryOrder)


@dataclass(frozen=True)
class Render:
    """Render a job.

    Attributes:
        inputs: the bytes of its pictures by reference.
        skip: the images that are there already.
        form: of a converted model, or `FULL_PRECISION`; None: it has none, or the renderer may choose. One renderer is
            only ever asked for one compute unit, and for one form of a model: whoever wants another starts another
            renderer.
        ahead: the specs, as JSON, of jobs for the same model that wait; the next first.
    """

    job_json: str
    inputs: Mapping[str, bytes]
    skip: tuple[int, ...]
    form: FormName | None = None
    memory: MemoryOrder = field(default_factory=MemoryOrder)
    ahead: tuple[str, ...] = ()


@dataclass(frozen=True)
class GoOn:
    """Begin the next image. The last one is recorded, or takes longer than it is worth to wait for.

    So a kill, of whichever process, costs the image at hand, and not the one before as well.
    """


@dataclass(frozen=True)
class Cancel:
    """Stop the job at hand: between two steps, or (`after_image`) when the image at hand is done."""

    after_image: bool = False


@dataclass(frozen=True)
class Ready:
    """The model is warm. `seconds` is what warming took."""

    model: str
    seconds: float
    about: Mapping[str, str]


@dataclass(frozen=True)
class NotReady:
    """The model could not be warmed; jobs for it will say why, or do better. `kind`: see `Failed`."""

    model: str
    kind: str
    message: str
    details: str = field(default="", repr=False)


@dataclass(frozen=True)
class Step:
    """Image `k` has done `step` (from 1) of its denoising steps."""

    k: int
    step: int
    num_steps: int


@dataclass(frozen=True)
class Picture:
    """An image, as rows of red, green and blue bytes."""

    k: int
    seed: int
    width: int
    height: int
    rgb: bytes
    seconds: float
    load_seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """All images of the job were sent."""

    memory: MemoryUse | None = None


@dataclass(frozen=True)
class Failed:
    """The job ended early; `kind` is that of an error in `renderkiln.schema.errors`."""

    kind: str
    message: str
    details: str = field(default="", repr=False)
    memory: MemoryUse | None = None


FromRenderer = Ready | NotReady | Step | Picture | Done | Failed
ToRenderer = WarmUp | Render | GoOn | Cancel


@dataclass(frozen=True)
class Pressure:
    """How short of memory the system is: a `memory.pressure.Level`."""

    level: int


@dataclass(frozen=True)
class Resident:
    """What is in the renderer's memory now.

    Attributes:
        stages: model, stage and bytes of weights of each stage that is loaded.
        other_bytes: what the process holds beside them, as of the last time that it gave memory back.
        loads, drops: of each stage, by its name, since the renderer began.
        policy: the one in force, under whatever pressure there is.
        why: what has just changed, in plain words.
    """

    stages: tuple[tuple[str, str, int], ...]
    other_bytes: int
    loads: Mapping[str, int]
    drops: Mapping[str, int]
    policy: MemoryPolicy
    why: str


def write_datagram(message: Pressure | Resident) -> bytes:
    """A message of the second pipe."""
    return json.dumps(dataclasses.asdict(message)).encode()


def read_pressure(datagram: bytes) -> Pressure:
    """The supervisor's word; it and the renderer trust each other."""
    return Pressure(**_read(datagram))


def read_resident(datagram: bytes) -> Resident:
    """The renderer's word."""
    said = _read(datagram)
    return Resident(**{**said, "stages": tuple((model, stage, size) for model, stage, size in said["stages"])})


def _read(datagram: bytes) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(datagram)
    return said

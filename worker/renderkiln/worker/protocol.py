"""What supervisor and renderer say to each other, over a private pipe between a process and its child.

The supervisor sends `WarmUp`, `Render` and `Cancel`; the renderer answers a `WarmUp` with `Ready` or `NotReady`, and a
`Render` with any number of `Step` and `Picture` and then exactly one of `Done` or `Failed`.

One order at a time: the next `WarmUp` or `Render` is sent only after the last answer to the one before. So nobody ever
waits to write to somebody who waits to write, and an answer is always to the order at hand. A `Cancel` may come at any
time; too late, it is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: A variant and a compute unit.
FormName = tuple[str, str]


@dataclass(frozen=True)
class RendererConfig:
    """What a renderer is started with; travels as JSON on its command line."""

    data_dir: str
    engine: str
    device: str
    dtype: str
    compute_unit: str = "auto"
    variant: str = "auto"


@dataclass(frozen=True)
class WarmUp:
    """Load this model and render one step, so that the first job does not wait for it. `form`: see `Render`."""

    model: str
    form: FormName | None = None


@dataclass(frozen=True)
class Render:
    """Render a job.

    Attributes:
        inputs: the bytes of its pictures by reference.
        skip: the images that are there already.
        form: of a converted model; None: it has none, or the renderer may choose. One renderer is only ever asked for
            one compute unit, and for one form of a model: whoever wants another starts another renderer.
    """

    job_json: str
    inputs: Mapping[str, bytes]
    skip: tuple[int, ...]
    form: FormName | None = None


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


@dataclass(frozen=True)
class Failed:
    """The job ended early; `kind` is that of an error in `renderkiln.schema.errors`."""

    kind: str
    message: str
    details: str = field(default="", repr=False)


FromRenderer = Ready | NotReady | Step | Picture | Done | Failed
ToRenderer = WarmUp | Render | Cancel

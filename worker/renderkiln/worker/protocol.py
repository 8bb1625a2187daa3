"""What supervisor and renderer say to each other, over a private pipe between a process and its child.

The supervisor sends `WarmUp`, `Render` and `Cancel`; the renderer answers a `WarmUp` with `Ready` or `Failed`, and a
`Render` with any number of `Step` and `Picture` and then exactly one of `Done` or `Failed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RendererConfig:
    """What a renderer is started with; travels as JSON on its command line."""

    data_dir: str
    engine: str
    device: str
    dtype: str


@dataclass(frozen=True)
class WarmUp:
    """Load this model and render one step, so that the first job does not wait for it."""

    model: str


@dataclass(frozen=True)
class Render:
    """Render a job. `inputs` are the bytes of its pictures by reference; `skip` names images that are there already."""

    job_json: str
    inputs: Mapping[str, bytes]
    skip: tuple[int, ...]


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
class Step:
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
    """The job (or the warm-up) ended early; `kind` is that of an error in `renderkiln.schema.errors`."""

    kind: str
    message: str
    details: str = field(default="", repr=False)


FromRenderer = Ready | Step | Picture | Done | Failed
ToRenderer = WarmUp | Render | Cancel

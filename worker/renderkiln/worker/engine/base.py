"""What every engine can do, and the plain values that it gives back. Knows nothing of torch or Core ML."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from renderkiln.schema.jobs import Job
from renderkiln.schema.spec import RenderSpec

from ..memory.stages import LoadedStage

#: Called after each denoising step as (k, step, num_steps): image k has done `step` (from 1) of `num_steps`
#: steps. It may raise to stop the job there (CanceledError, say); what it raises reaches the caller of
#: `render` untouched.
OnStep = Callable[[int, int, int], None]


@dataclass(frozen=True)
class RenderedImage:
    """One picture, not yet written anywhere."""

    #: Number within the job.
    k: int
    #: The seed that makes this picture alone.
    seed: int
    width: int
    height: int
    #: Rows from the top, pixels from the left, three bytes (red, green, blue) each: height × width × 3 bytes.
    rgb: bytes
    #: Wall time of this picture, with the loads that it had to wait for.
    seconds: float
    #: How many stages were loaded for it, and the seconds that took.
    loads: int = 0
    load_seconds: float = 0.0
    #: What the person who asked should know, in plain sentences: a prompt that was cut off, say.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ahead:
    """What is known of the jobs that wait, for a look ahead."""

    #: Of jobs for the same model, the next first.
    specs: Sequence[RenderSpec]
    #: Called before each of them; may raise to stop there, as `OnStep` may.
    between: Callable[[], None]


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up did."""

    model: str
    seconds: float
    device: str
    dtype: str
    stages: tuple[LoadedStage, ...]
    #: How near a converted model's self-test picture comes to the stored one, in decibels; None: none is stored.
    likeness: float | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says of itself: for a worker's announcement and for bug reports."""

    engine: str
    device: str
    dtype: str
    attention_slicing: bool
    #: Of a converted model: original, split-einsum or split-einsum-v2.
    variant: str = ""
    #: Versions of the libraries that decide the pixels, by name.
    versions: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[LoadedStage, ...] = ()


class Engine(Protocol):
    """Renders jobs, one at a time, from one thread."""

    def render(
        self,
        job: Job,
        inputs: Mapping[str, bytes],
        *,
        skip: Collection[int] = (),
        on_step: OnStep,
        ahead: Ahead | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> Iterator[RenderedImage]:
        """Yields the images of a job in order of k, leaving out those in `skip`.

        Args:
            job: what to render; image k comes from `job.image_spec(k)` alone, whatever else the job holds.
            inputs: the bytes of the init image and the mask, by the spec's references (`sha256:…`).
            skip: numbers of the images that are there already.
            on_step: see `OnStep`.
            ahead: jobs that wait, whose prompts are encoded while the text encoder is loaded, where it cannot stay.
            enough: asked before each image but the first; if it says so, the images that were begun are yielded, and
                no more.

        Raises:
            RenderkilnError: one of its kinds; the engine can take the next job.
        """

    def warm_up(self, model: str, revision: str | None = None) -> WarmUp:
        """Loads what text-to-image needs and runs one step. Raises RenderkilnError."""

    def describe(self) -> EngineInfo:
        """What this engine is and holds."""

    def close(self) -> None:
        """Drops everything that is in memory. The engine may be used again; it then loads anew."""

"""What the residency manager knows of stages, and what it tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol


@dataclass(frozen=True)
class LoadedStage:
    """One model of a pipeline that is in memory."""

    model: str
    #: text_encoder, text_encoder_2, unet, vae_encoder, vae_decoder, safety_checker, …
    stage: str
    #: Of its weights, in the precision in which they are held.
    size_bytes: int
    #: What the last load took.
    load_seconds: float


@dataclass(frozen=True)
class Measured:
    """What a stage was seen to take."""

    load_seconds: float = 0.0
    #: The most that it took beside its weights, and the pixels of the image at which it did.
    working_bytes: int = 0
    pixels: int = 0


class StageLoader(Protocol):
    """Brings one stage into memory; what `load` gives has the calls that `engine/stages.py` asks of a stage."""

    @property
    def size_bytes(self) -> int:
        """Size of the weights once loaded; known from files, before loading."""

    def load(self) -> Any:
        """Loads the stage; may run in a thread while another stage is at work.

        Raises ModelLoadError or OutOfMemoryError, and then leaves nothing behind.
        """


@dataclass
class Counts:
    """What the residency did since it began."""

    loads: int = 0
    #: For which the work had to wait.
    load_seconds: float = 0.0
    #: Stages dropped to make room.
    evictions: int = 0
    #: Loads by stage.
    by_stage: dict[str, int] = field(default_factory=dict)
    #: Stages dropped, for whatever reason, by stage.
    drops_by_stage: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Counts:
        return replace(self, by_stage=dict(self.by_stage), drops_by_stage=dict(self.drops_by_stage))

    def since(self, before: Counts) -> Counts:
        """What was added to an earlier copy."""
        return Counts(
            self.loads - before.loads,
            self.load_seconds - before.load_seconds,
            self.evictions - before.evictions,
            _less(self.by_stage, before.by_stage),
            _less(self.drops_by_stage, before.drops_by_stage),
        )


def _less(now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {stage: count - before.get(stage, 0) for stage, count in now.items() if count > before.get(stage, 0)}

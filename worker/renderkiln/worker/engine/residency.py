"""What is in memory, and why: the one owner of loaded stages.

Whoever needs a stage borrows it for as long as one call lasts (`use`); nobody else keeps a reference, so that
dropping a stage here gives its memory back. The policy is `resident`: what was loaded stays until it is
dropped by name, or until a job for another model comes. Used from one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from .base import LoadedStage


class StageKey(NamedTuple):
    """Which stage of which model."""

    #: The model, by whatever its owner tells models apart with.
    model: str
    #: text_encoder, text_encoder_2, unet, vae_encoder, vae_decoder or safety_checker.
    stage: str


class StageLoader(Protocol):
    """Brings one stage into memory; what `load` gives has the calls that `stages.py` asks of a stage."""

    @property
    def size_bytes(self) -> int:
        """Size of the weights once loaded; known from files, before loading."""

    def load(self) -> Any:
        """Loads the stage. Raises ModelLoadError or OutOfMemoryError, and then leaves nothing behind."""


@dataclass
class _Entry:
    loader: StageLoader
    stage: Any = None
    borrowed: int = 0
    load_seconds: float = 0.0


class Residency:
    """Loads stages on first use and keeps them.

    Args:
        after_drop: called after stages were dropped, to hand freed memory back to the system.
        clock: seconds, monotonic.
    """

    def __init__(
        self, after_drop: Callable[[], None] = lambda: None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._entries: dict[StageKey, _Entry] = {}
        self._after_drop = after_drop
        self._clock = clock
        #: Loads since the start, and the seconds they took together.
        self.loads = 0
        self.load_seconds = 0.0

    def add(self, key: StageKey, loader: StageLoader) -> None:
        """Makes a stage known; loads nothing. What another loader of that key had loaded is dropped."""
        self.drop(key)
        self._entries[key] = _Entry(loader)

    @contextmanager
    def use(self, key: StageKey) -> Iterator[Any]:
        """Lends a stage for the length of a `with` block, loading it first if need be.

        Raises:
            ModelLoadError, OutOfMemoryError: it could not be loaded; it then counts as not loaded.
        """
        entry = self._entries[key]
        if entry.stage is None:
            self._load(entry)
        entry.borrowed += 1
        try:
            yield entry.stage
        finally:
            entry.borrowed -= 1

    def _load(self, entry: _Entry) -> None:
        start = self._clock()
        entry.stage = entry.loader.load()
        entry.load_seconds = self._clock() - start
        self.loads += 1
        self.load_seconds += entry.load_seconds

    def loaded(self) -> tuple[LoadedStage, ...]:
        """The stages in memory, in the order in which they became known."""
        return tuple(
            LoadedStage(key.model, key.stage, entry.loader.size_bytes, entry.load_seconds)
            for key, entry in self._entries.items()
            if entry.stage is not None
        )

    def drop(self, key: StageKey) -> bool:
        """Drops a stage, if it is loaded; says whether it was. Raises RuntimeError while it is lent."""
        return self._drop([key])

    def drop_others(self, model: str) -> bool:
        """Drops the stages of every other model, so that two models never sit in memory side by side."""
        return self._drop([key for key in self._entries if key.model != model])

    def drop_all(self) -> bool:
        """Drops every stage that is loaded."""
        return self._drop(list(self._entries))

    def forget(self, model: str) -> None:
        """Drops a model's stages and its loaders."""
        mine = [key for key in self._entries if key.model == model]
        self._drop(mine)
        for key in mine:
            del self._entries[key]

    def _drop(self, keys: list[StageKey]) -> bool:
        entries = [self._entries[key] for key in keys if key in self._entries]
        loaded = [entry for entry in entries if entry.stage is not None]
        if any(entry.borrowed for entry in loaded):
            raise RuntimeError(f"cannot drop a stage that is at work, one of {[key.stage for key in keys]}")
        for entry in loaded:
            entry.stage = None
        if loaded:
            self._after_drop()
        return bool(loaded)

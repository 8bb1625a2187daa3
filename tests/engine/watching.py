"""Watches what an engine's residency manager does."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Iterator
from typing import Any

from renderkiln.worker.engine.torch_engine import TorchEngine
from renderkiln.worker.memory.planning import StageKey

#: Stages by their key and the kind of their loader.
Originals = dict[tuple[StageKey, type], Any]


class WatchedLoader:
    """Another loader, and what of its stages is alive.

    Args:
        originals: gives copies of what is there, and adds what is not; None: loads each time.
    """

    def __init__(self, key: StageKey, loader: Any, originals: Originals | None) -> None:
        self._of, self._loader, self._originals = (key, type(loader)), loader, originals
        self.size_bytes = loader.size_bytes
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def load(self) -> Any:
        if self._originals is None:
            stage = self._loader.load()
        else:
            if self._of not in self._originals:
                self._originals[self._of] = self._loader.load()
            # A module of its own over the same layers; but transformers hooks into those of a text encoder
            copied = copy.deepcopy if self._of[0].stage.startswith("text_encoder") else copy.copy
            stage = copied(self._originals[self._of])
        self.alive.add(stage)
        return stage


class Watch:
    """Over an engine that has opened no model yet."""

    def __init__(self, engine: TorchEngine, originals: Originals | None = None) -> None:
        self.residency, self._originals = engine.residency, originals
        self._loaders: dict[StageKey, WatchedLoader] = {}
        #: What was put to work, in order.
        self.uses: list[str] = []
        #: What was in memory whenever that had changed.
        self.held: list[tuple[str, ...]] = []
        self._add, self._use = self.residency.add, self.residency.use
        vars(self.residency).update(add=self.add, use=self.use, on_change=self.changed)

    def add(self, key: StageKey, loader: Any) -> None:
        self._loaders[key] = WatchedLoader(key, loader, self._originals)
        self._add(key, self._loaders[key])

    @contextlib.contextmanager
    def use(self, key: StageKey) -> Iterator[Any]:
        with self._use(key) as stage:
            self.uses.append(key.stage)
            self.check()
            yield stage

    def changed(self, _why: str) -> None:
        self.held.append(tuple(each.stage for each in self.residency.loaded()))

    def check(self) -> None:
        """Nothing is in memory but what the residency manager tells of."""
        told = {(each.model, each.stage) for each in self.residency.loaded()}
        for key, entry in self.residency._entries.items():
            if entry.coming is not None and entry.coming.future.exception() is None:  # waits for what is on its way
                told.add((key.model, key.stage))
        assert {(key.model, key.stage) for key, loader in self._loaders.items() if len(loader.alive)} == told

    def begin(self) -> None:
        """Forgets what was seen until now, and drops what is in memory: nothing may be lent."""
        self.check()
        self.residency.drop_all()
        self.check()
        self.uses.clear()
        self.held.clear()

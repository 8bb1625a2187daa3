"""Stages, loaders and a meter that do as they are told."""

from __future__ import annotations

import threading
import weakref

from renderkiln.schema.errors import OutOfMemoryError
from renderkiln.worker.memory.meter import Meter
from renderkiln.worker.memory.planning import StageKey


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Stage:
    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


class Loader:
    """Takes two seconds unless told otherwise, and fails as often as it is told to."""

    def __init__(self, clock: Clock, size_bytes: int = 100, seconds: float = 2) -> None:
        self.clock, self.size_bytes, self.seconds = clock, size_bytes, seconds
        self.failures = 0
        self.loads = 0
        #: What it loaded, as long as anything holds it.
        self.alive: weakref.WeakSet[Stage] = weakref.WeakSet()
        self.begun = threading.Event()
        #: `load` waits until this is set.
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def load(self) -> Stage:
        self.begun.set()
        assert self.may_go_on.wait(10)
        self.clock.now += self.seconds
        if self.failures:
            self.failures -= 1
            raise OutOfMemoryError("no room")
        self.loads += 1
        stage = Stage(self.size_bytes)
        self.alive.add(stage)
        return stage


class Scale(Meter):
    """Weighs what the loaders' stages take, and `empty` beside them.

    Args:
        working: what whatever is at work takes, in bytes.
    """

    def __init__(self, loaders: dict[StageKey, Loader], empty: int = 0, working: int = 0) -> None:
        self.loaders, self.empty, self.working = loaders, empty, working

    def now(self) -> int:
        return self.empty + sum(stage.size_bytes for loader in self.loaders.values() for stage in loader.alive)

    def begin(self) -> int:
        return self.now()

    def end(self) -> int:
        return self.now() + self.working

    def take_highest(self) -> int:
        return self.now()

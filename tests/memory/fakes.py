"""Stages, loaders and a meter that do as they are told."""

from __future__ import annotations

import threading
import weakref

from renderkiln.schema.errors import OutOfMemoryError
from renderkiln.worker.memory.meter import Meter
from renderkiln.worker.memory.planning import StageKey
from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.memory.sizes import expected_working


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


TEXT, TEXT_2, UNET, VAE = (StageKey("a", name) for name in ("text_encoder", "text_encoder_2", "unet", "vae_decoder"))
OTHER = StageKey("b", "unet")
#: Bytes, and seconds that a load takes.
SIZES = {TEXT: (100, 1.0), TEXT_2: (200, 2.0), UNET: (1000, 8.0), VAE: (100, 1.0), OTHER: (1000, 8.0)}
EMPTY = 50


class World:
    """A residency manager over fakes, and what it did."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.loaders = {key: Loader(self.clock, *of_it) for key, of_it in SIZES.items()}
        self.scale = Scale(self.loaders, EMPTY)
        self.residency = Residency(clock=self.clock, meter=self.scale)
        for key, loader in self.loaders.items():
            self.residency.add(key, loader)
        self.said: list[str] = []
        self.residency.on_change = self.said.append

    def work(self, *keys: StageKey, working: int = 0) -> None:
        """Puts stages to work, one after another."""
        for key in keys:
            with self.residency.use(key):
                self.scale.working = working
            self.scale.working = 0

    @property
    def loaded(self) -> set[StageKey]:
        """What is in memory, as the residency manager says and as the loaders know."""
        said = {StageKey(each.model, each.stage) for each in self.residency.loaded()}
        assert said == {key for key, loader in self.loaders.items() if len(loader.alive)}
        return said


def at_work(*keys: StageKey) -> int:
    """Bytes that some stages take, with the largest of them at work, before anything was measured."""
    sizes = [SIZES[key][0] for key in keys]
    return EMPTY + sum(sizes) + max(expected_working("", size, 0) for size in sizes)

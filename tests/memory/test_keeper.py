"""The watch over memory: real pipes, a real residency at the other end, and a system that a test speaks for."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import MemoryRecords, MemorySample
from renderkiln.worker.memory.planning import Rule, StageKey
from renderkiln.worker.memory.pressure import Level, Probe, Sample, Thresholds
from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.renderer.memory_link import MemoryLink
from renderkiln.worker.supervisor.memory import keeper as keeper_module
from renderkiln.worker.supervisor.memory.display import show
from renderkiln.worker.supervisor.memory.keeper import MemoryKeeper, View

GIGA = 10**9
UNET, ENCODER = StageKey("owner/m@fp16", "unet"), StageKey("owner/m@fp16", "text_encoder")


class System(Probe):
    """A system of which a test says how much is available."""

    def __init__(self) -> None:
        self.available, self.now = 8 * GIGA, 0.0

    def read(self) -> Sample:
        self.now += 1
        return Sample(self.now, 16 * GIGA, self.available, 0, None, None, None)


class Loader:
    size_bytes = 1000

    def load(self) -> Any:
        return object()


class Renderer:
    """The other end of the pipe, in this process."""

    def __init__(self) -> None:
        self.residency = Residency()
        self.residency.set_rule(Rule("auto", 100 * GIGA))
        for key in (ENCODER, UNET):
            self.residency.add(key, Loader())
        self.residency.begin_job([ENCODER, UNET], 64)
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.link = MemoryLink(self.ours, self.residency)

    def use(self, key: StageKey) -> None:
        with self.residency.use(key):
            pass

    @property
    def held(self) -> list[str]:
        return [stage.stage for stage in self.residency.loaded()]


class Watched:
    """A keeper with what it showed."""

    def __init__(self, ledger: Path, heeds_pressure: bool = True) -> None:
        self.system = System()
        self._changed = threading.Condition()
        self._view: View | None = None
        self.keeper = MemoryKeeper(
            "mini-1", ledger, Thresholds(calm=3.0), heeds_pressure=heeds_pressure, on_view=self._hear, probe=self.system
        )
        self.keeper.start()

    def _hear(self, view: View) -> None:
        with self._changed:
            self._view = view
            self._changed.notify_all()

    def until(self, holds: Callable[[View], bool]) -> View:
        """Waits for a view."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._view is not None and holds(self._view), timeout=20)
            assert self._view is not None
            return self._view


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def watched(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(keeper_module, "_EVERY", 0.02)
    watched = Watched(ledger)
    yield watched
    watched.keeper.stop()


@pytest.fixture
def make_renderer() -> Iterator[Callable[[], Renderer]]:
    made: list[Renderer] = []

    def make() -> Renderer:
        made.append(Renderer())
        return made[-1]

    yield make
    for each in made:
        each.ours.close()
        each.theirs.close()


@pytest.fixture
def renderer(make_renderer: Callable[[], Renderer]) -> Renderer:
    return make_renderer()


def written(ledger: Path) -> list[MemorySample]:
    opened = Ledger(ledger)
    try:
        return MemoryRecords(opened).samples("mini-1")
    finally:
        opened.close()


def resident(view: View) -> list[str]:
    return [stage for _, stage, _ in view.resident.stages] if view.resident is not None else []


def test_pressure_reaches_the_renderer_and_relief_too(watched: Watched, renderer: Renderer, ledger: Path) -> None:
    watched.keeper.renderer_started(os.getpid(), renderer.theirs)
    for key in (ENCODER, UNET):
        renderer.use(key)
    view = watched.until(lambda view: resident(view) == ["text_encoder", "unet"])
    assert view.process_bytes > 10_000_000
    assert view.resident is not None
    assert dict(view.resident.loads) == {"text_encoder": 1, "unet": 1}
    announced = watched.keeper.announcement()
    assert announced is not None
    assert announced.held_bytes > 10_000_000
    assert (announced.policy, announced.budget_bytes, announced.pressure) == ("auto", None, "calm")
    assert [(each.model, each.stage, each.size_bytes) for each in announced.stages] == [
        ("owner/m@fp16", "text_encoder", 1000),
        ("owner/m@fp16", "unet", 1000),
    ]

    watched.system.available = GIGA  # 6 %
    watched.until(lambda view: view.verdict.level is Level.WARN)
    renderer.use(UNET)
    assert renderer.held == ["unet"], "what was idle went, and what is used came back"

    watched.system.available = GIGA // 2  # 3 %
    watched.until(lambda view: view.verdict.level is Level.CRITICAL)
    renderer.use(UNET)
    renderer.use(ENCODER)
    assert renderer.held == ["text_encoder"], "one stage at a time"
    assert renderer.residency.rule.policy == "jit"
    watched.until(lambda view: resident(view) == ["text_encoder"])
    announced = watched.keeper.announcement()
    assert announced is not None
    assert (announced.policy, announced.pressure) == ("jit", "critical")

    watched.system.available = 8 * GIGA
    watched.until(lambda view: view.verdict.level is Level.CALM)
    renderer.use(UNET)
    assert renderer.held == ["text_encoder", "unet"], "grown back"
    watched.until(lambda view: resident(view) == ["text_encoder", "unet"])

    watched.keeper.event("tightened")
    watched.keeper.stop()
    found = written(ledger)
    levels = [sample.level for sample in found]
    assert [level for before, level in zip(["", *levels], levels, strict=False) if level != before] == [
        "calm",
        "warn",
        "critical",
        "calm",
    ]
    said = " | ".join(sample.event or "" for sample in found)
    assert "memory pressure is warn (6.2 % of memory (1.0 GB) is available): what is idle is dropped" in said
    assert said.rstrip(" |").endswith("tightened")
    assert {tuple(stage for _, stage, _ in sample.stages) for sample in found} >= {
        ("text_encoder", "unet"),
        ("text_encoder",),
    }


def test_an_idle_renderer_gives_memory_back_as_well(watched: Watched, renderer: Renderer) -> None:
    watched.keeper.renderer_started(os.getpid(), renderer.theirs)
    renderer.use(UNET)
    watched.system.available = GIGA // 2
    watched.until(lambda view: view.verdict.level is Level.CRITICAL)
    renderer.link.listen()  # what the renderer's loop does when its pipe can be read
    assert renderer.held == []


def test_nothing_is_announced_of_a_renderer_that_has_said_nothing(watched: Watched, renderer: Renderer) -> None:
    watched.keeper.renderer_started(os.getpid(), renderer.theirs)
    assert watched.keeper.announcement() is None


def test_a_new_renderer_hears_of_pressure_at_once(watched: Watched, renderer: Renderer) -> None:
    watched.system.available = GIGA // 2
    watched.until(lambda view: view.verdict.level is Level.CRITICAL)
    watched.keeper.renderer_started(os.getpid(), renderer.theirs)
    renderer.link.listen()
    assert renderer.residency.rule.policy == "jit"


def test_a_renderer_that_is_gone_is_no_trouble(watched: Watched, make_renderer: Callable[[], Renderer]) -> None:
    gone = make_renderer()
    watched.keeper.renderer_started(2**22, gone.theirs)  # no such process
    gone.ours.close()
    watched.system.available = GIGA
    assert watched.until(lambda view: view.verdict.level is Level.WARN).process_bytes == 0
    assert watched.keeper.take_peak() == 0, "nobody"
    second = make_renderer()
    watched.keeper.renderer_started(os.getpid(), second.theirs)
    second.use(UNET)
    watched.until(lambda view: resident(view) == ["unet"])
    assert watched.keeper.take_peak() > 10_000_000
    assert watched.keeper.holding()[1] == 1000


def test_a_flood_of_words_blocks_nobody(renderer: Renderer) -> None:
    for number in range(2000):  # which nobody reads; one that waited would never come back
        renderer.link.tell(f"word {number}")
    assert b"word 0" in renderer.theirs.recv(65536)


def test_where_pressure_is_not_heeded_it_is_still_written_down(
    ledger: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_EVERY", 0.02)
    watched = Watched(ledger, heeds_pressure=False)
    watched.keeper.renderer_started(os.getpid(), renderer.theirs)
    renderer.use(UNET)
    watched.system.available = GIGA // 2
    watched.until(lambda view: view.verdict.level is Level.CRITICAL)
    renderer.link.listen()
    assert renderer.held == ["unet"]
    watched.keeper.stop()
    assert "critical" in {sample.level for sample in written(ledger)}


def test_the_display_names_what_is_in_memory(watched: Watched, renderer: Renderer) -> None:
    from rich.console import Console

    watched.keeper.renderer_started(os.getpid(), renderer.theirs)
    for key in (ENCODER, UNET):
        renderer.use(key)
    renderer.residency.drop(ENCODER)
    view = watched.until(lambda view: resident(view) == ["unet"])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(show(view))
    lines = console.export_text().splitlines()
    assert lines[1].split() == ["text_encoder", "–", "1", "1"]
    assert lines[2].split() == ["unet", "0", "1", "0"]
    assert "8.0 of 16.0 GB available" in lines[3]

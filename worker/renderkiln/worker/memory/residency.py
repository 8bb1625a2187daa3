"""The one owner of loaded stages: loads them on first use, and drops what a rule leaves no room for.

Whoever needs a stage borrows it for as long as one call lasts (`use`); nobody else keeps a reference, so that dropping
a stage here gives its memory back. Used from one thread; only a load that was begun ahead runs in another.
"""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .meter import Meter
from .planning import Rule, StageCost, StageKey, make_room, needs_tiles, tighten
from .sizes import LOAD_RATE, expected_working
from .stages import Counts, LoadedStage, Measured, StageLoader

log = logging.getLogger("renderkiln.renderer")
#: How much more than the size that its files tell a stage may take until that size is not believed, in bytes, too.
_TOLD_WRONG, _BEYOND_NOISE = 1.25, 50_000_000
#: How much the last job counts in how often a stage is needed.
_RECENT = 0.3


class _Arrival(NamedTuple):
    """A stage that was loaded."""

    stage: Any
    seconds: float
    #: By how many bytes the process grew meanwhile.
    grown: int


class _Coming(NamedTuple):
    """A load that was begun ahead. The stage is not the future's result, as the thread that makes it holds on to that
    for a moment after it has told of it."""

    future: Future[None]
    #: What was loaded, once the future is done.
    arrived: list[_Arrival]


@dataclass
class _Entry:
    loader: StageLoader
    size_bytes: int
    stage: Any = None
    borrowed: int = 0
    load_seconds: float = 0.0
    working_bytes: int = 0
    pixels: int = 0
    uses_per_job: float = 0.0
    used: bool = False
    #: A load that was begun ahead.
    coming: _Coming | None = None

    @property
    def is_held(self) -> bool:
        """Whether it is in memory, or on its way there."""
        return self.stage is not None or self.coming is not None


class Residency:
    """Loads stages on first use, and keeps what its rule has room for.

    Args:
        hand_back: called after stages were loaded or dropped, to give the system what was freed: what reading files
            took in passing would else be held beside the stage at work.
        clock: seconds, monotonic.
        meter: measures this process.
    """

    def __init__(
        self,
        hand_back: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
        meter: Meter | None = None,
    ) -> None:
        self._entries: dict[StageKey, _Entry] = {}
        self._hand_back = hand_back
        self._clock = clock
        self._meter = meter or Meter()
        #: What the process holds beside its stages: before the first of them, and as of the last drop.
        self._empty_bytes = self._other_bytes = self._meter.now()
        self._ahead: ThreadPoolExecutor | None = None
        self._rule, self._step, self._level = Rule(), 0, 0
        self._order: tuple[StageKey, ...] = ()
        self._pixels = 0
        self._together: frozenset[StageKey] = frozenset()
        self.counts = Counts()
        #: Called before a stage is put to work: whoever hears of pressure calls `press` from here.
        self.listen: Callable[[], None] = lambda: None
        #: Called when what is in memory has changed, with why in plain words.
        self.on_change: Callable[[str], None] = lambda why: None

    # The rule.

    @property
    def rule(self) -> Rule:
        """The rule in force: as it was set, less what pressure and memory that ran out took away."""
        step = max(self._step, self._level) if self._rule.policy == "auto" else self._step
        return tighten(self._rule, step, self.costs(), self._other_bytes) if step else self._rule

    @property
    def _in_tiles(self) -> bool:
        """Whether memory that ran out led to tiles. Pressure never does: it comes and goes, and changes no picture."""
        return tighten(self._rule, self._step, ()).in_tiles

    @property
    def other_bytes(self) -> int:
        """What the process holds beside its stages, as of the last drop; before one, what it held when it was empty."""
        return self._other_bytes

    def take_peak(self) -> int:
        """The most that the process held since this was asked last, in bytes."""
        return self._meter.take_highest()

    def set_rule(self, rule: Rule, step: int = 0) -> None:
        """Sets the rule for the jobs that come. `step`: see `planning.tighten`."""
        self._rule, self._step = rule, step

    def press(self, level: int) -> None:
        """Heeds the system's memory pressure: 0 none, 1 drop what is idle, 2 one stage at a time from now on.

        What is dropped under 1 comes back as it is needed, as far as the tightened rule has room for it.
        """
        rises, self._level = level > self._level, level
        if rises and self._rule.policy == "auto":
            self._drop([key for key, entry in self._entries.items() if not entry.borrowed], "memory pressure")

    def begin_job(self, order: Sequence[StageKey], pixels: int, known: Mapping[str, Measured] | None = None) -> None:
        """Says which stages the next job puts to work, in their order, and for how large an image.

        Args:
            known: what was measured of these stages on this machine before, by stage.
        """
        wanted = {key for key in order if key in self._entries}
        for key, entry in self._entries.items():
            entry.uses_per_job += _RECENT * (float(entry.used) - entry.uses_per_job)
            if key in wanted and key not in self._order:
                entry.uses_per_job = 1.0
            entry.used = False
        self._order, self._pixels = tuple(key for key in order if key in wanted), pixels
        for key in self._order:
            entry, found = self._entries[key], (known or {}).get(key.stage)
            if found is not None and entry.load_seconds == 0:
                entry.load_seconds = found.load_seconds
                entry.working_bytes, entry.pixels = found.working_bytes, found.pixels

    def costs(self) -> list[StageCost]:
        """What the stages of the job at hand take, at its size of image, in the order in which it needs them."""
        return [self._cost(key) for key in self._order if key in self._entries]

    def measured(self, model: str) -> dict[str, tuple[int, Measured]]:
        """The size in bytes, and what was measured, of a model's stages, of those that were loaded once."""
        return {
            key.stage: (entry.size_bytes, Measured(entry.load_seconds, entry.working_bytes, entry.pixels))
            for key, entry in self._entries.items()
            if key.model == model and entry.load_seconds > 0
        }

    def _cost(self, key: StageKey) -> StageCost:
        entry = self._entries[key]
        working = entry.working_bytes * max(1.0, self._pixels / entry.pixels) if entry.pixels else None
        return StageCost(
            key,
            entry.size_bytes,
            expected_working(key.stage, entry.size_bytes, self._pixels) if working is None else int(working),
            entry.load_seconds or entry.size_bytes / LOAD_RATE,
            entry.uses_per_job,
        )

    # Stages.

    def add(self, key: StageKey, loader: StageLoader) -> None:
        """Makes a stage known; loads nothing. What another loader of that key had loaded is dropped."""
        self.drop(key)
        self._entries[key] = _Entry(loader, loader.size_bytes)
        self._order = tuple(each for each in self._order if each != key)  # to the next job it is a new one

    @contextmanager
    def use(self, key: StageKey) -> Iterator[Any]:
        """Lends a stage for the length of a `with` block: makes room for it, and loads it first if need be.

        Raises:
            ModelLoadError, OutOfMemoryError: it could not be loaded; it then counts as not loaded.
        """
        entry = self._entries[key]
        entry.borrowed += 1  # from here on, so that what is heard now does not drop what is about to be used
        try:
            self.listen()
            entry.used = True
            self._make_room(key)
            if entry.stage is None:
                self._load(key, entry)
            before = self._meter.begin()
            try:
                yield entry.stage
            finally:
                self._note_working(key, entry, before)
        finally:
            entry.borrowed -= 1

    def load_ahead(self, key: StageKey) -> bool:
        """Begins to load a stage beside the work at hand, if it is known and there is room for both."""
        entry = self._entries.get(key)
        if entry is None or entry.is_held or self.rule.policy == "jit" or self._to_drop(key):
            return False
        self._ahead = self._ahead or ThreadPoolExecutor(1, thread_name_prefix="load-ahead")
        loader, arrived = entry.loader, list[_Arrival]()
        entry.coming = _Coming(self._ahead.submit(lambda: arrived.append(self._timed_load(loader))), arrived)
        return True

    def loaded(self) -> tuple[LoadedStage, ...]:
        """The stages in memory, in the order in which they became known; without what was loaded ahead."""
        return tuple(
            LoadedStage(key.model, key.stage, entry.size_bytes, entry.load_seconds)
            for key, entry in self._entries.items()
            if entry.stage is not None
        )

    def has_room_for(self, *keys: StageKey) -> bool:
        """Whether these stages may be in memory together, each at work in turn."""
        costs = [self._cost(key) for key in keys if key in self._entries]
        return not any(make_room(each, costs, (), self.rule, self._other_bytes) for each in costs)

    @contextmanager
    def together(self, keys: Sequence[StageKey], *, whatever_it_takes: bool = False) -> Iterator[bool]:
        """Has stages that are used in turn stay until the block ends, where that takes no more than is taken anyway.

        The two text encoders of SDXL would otherwise make way for each other with every prompt, and a ControlNet and
        the UNet with every step.

        Args:
            whatever_it_takes: have them stay even so.

        Yields:
            Whether they stay, or need not as there is only one.
        """
        costs = [self._cost(key) for key in keys if key in self._entries]
        rule = self.rule
        need = sum(each.size_bytes for each in costs) + max((each.working_bytes for each in costs), default=0)
        room = need
        if whatever_it_takes:
            pass
        elif rule.policy == "jit":
            room = max((each.at_work_bytes for each in self.costs()), default=0)
        elif rule.policy == "auto" and rule.budget_bytes is not None:
            room = rule.budget_bytes - self._other_bytes
        stay = len(costs) > 1 and need <= room
        self._together = frozenset(keys) if stay else frozenset()
        try:
            yield stay or len(costs) <= 1
        finally:
            self._together = frozenset()

    def needs_tiles(self, key: StageKey) -> bool:
        """See `planning.needs_tiles`. Goes by the budget as it was set: what was taken from it changes no picture."""
        return needs_tiles(self._cost(key), replace(self._rule, in_tiles=self._in_tiles), self._other_bytes)

    def drop(self, key: StageKey) -> bool:
        """Drops a stage, if it is loaded; says whether it was. Raises RuntimeError while it is lent."""
        return self._drop([key])

    def drop_others(self, model: str) -> bool:
        """Drops the stages of every other model."""
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

    def _to_drop(self, key: StageKey) -> tuple[StageKey, ...]:
        # A stage that only has to stay takes its weights, and no working set before its turn.
        held = [
            self._cost(each) if entry.borrowed else replace(self._cost(each), working_bytes=0)
            for each, entry in self._entries.items()
            if entry.is_held
        ]
        at_work = {each for each, entry in self._entries.items() if entry.borrowed} | self._together
        return make_room(self._cost(key), held, at_work, self.rule, self._other_bytes)

    def _make_room(self, key: StageKey) -> None:
        drops = self._to_drop(key)
        if drops:
            self.counts.evictions += len(drops)
            self._drop(list(drops), f"room for {key.stage}")

    def _timed_load(self, loader: StageLoader) -> _Arrival:
        start, before = self._clock(), self._meter.now()
        stage = loader.load()
        self._hand_back()
        return _Arrival(stage, self._clock() - start, self._meter.now() - before)

    def _load(self, key: StageKey, entry: _Entry) -> None:
        coming, entry.coming = entry.coming, None
        waited = self._clock()
        if coming is None:
            arrival = self._timed_load(entry.loader)
        else:
            coming.future.result()
            arrival = coming.arrived.pop()
        entry.stage, entry.load_seconds = arrival.stage, arrival.seconds
        if arrival.grown > _TOLD_WRONG * entry.size_bytes + _BEYOND_NOISE:  # what runs it holds more than the files do
            entry.size_bytes = arrival.grown
        self.counts.loads += 1
        self.counts.load_seconds += self._clock() - waited
        self.counts.by_stage[key.stage] = self.counts.by_stage.get(key.stage, 0) + 1
        self.on_change(f"{key.stage} loaded")

    def _note_working(self, key: StageKey, entry: _Entry, before: int) -> None:
        working = self._meter.end() - before
        in_parts = self._in_tiles or (key.stage.startswith("vae") and self.needs_tiles(key))
        if in_parts or any(each.coming is not None for each in self._entries.values()):
            return  # not what it takes in one piece, or not its own alone
        if self._pixels >= entry.pixels and working > entry.working_bytes:
            entry.working_bytes, entry.pixels = working, self._pixels

    def _drop(self, keys: list[StageKey], why: str = "") -> bool:
        held = {key: self._entries[key] for key in keys if key in self._entries and self._entries[key].is_held}
        names = ", ".join(key.stage for key in held)
        lent = [key.stage for key, entry in held.items() if entry.borrowed]
        if lent:
            raise RuntimeError(f"cannot drop a stage that is at work: {', '.join(lent)}")
        for key, entry in held.items():
            self.counts.drops_by_stage[key.stage] = self.counts.drops_by_stage.get(key.stage, 0) + 1
            if entry.coming is not None:
                entry.coming.future.exception()  # waits: nothing may be left that comes into memory later
                entry.coming = None
            _let_go(entry)
        if held:
            self._hand_back()
            weights = sum(entry.size_bytes for entry in self._entries.values() if entry.is_held)
            self._other_bytes = max(self._empty_bytes, self._meter.now() - weights)
            self.on_change(f"{names} dropped: {why}" if why else f"{names} dropped")
        return bool(held)


def _let_go(entry: _Entry) -> None:
    """Drops the one reference to a stage; says so where another one keeps it in memory."""
    try:
        last = weakref.ref(entry.stage)
    except TypeError:  # not every kind of stage can be watched
        last = None
    entry.stage = None
    if last is not None and last() is not None:
        gc.collect()  # it was part of a cycle
        if last() is not None:
            log.warning(
                "memory leak: a stage (%.0f MB) was dropped and something still holds it", entry.size_bytes / 1e6
            )

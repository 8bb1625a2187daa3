"""The residency manager in any order of operations that there may be: what it says is what is so."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from renderkiln.schema.errors import OutOfMemoryError
from renderkiln.worker.memory.planning import Rule, StageKey
from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.memory.sizes import expected_working

from .fakes import Clock, Loader, Scale

SIZES = {
    StageKey("a", "text_encoder"): 120,
    StageKey("a", "text_encoder_2"): 200,
    StageKey("a", "unet"): 1000,
    StageKey("a", "vae_decoder"): 90,
    StageKey("b", "text_encoder"): 130,
    StageKey("b", "unet"): 700,
}
KEYS = st.sampled_from(list(SIZES))
EMPTY = 40
POLICIES = st.sampled_from(["resident", "auto", "auto", "jit"])


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.loaders = {key: Loader(self.clock, size) for key, size in SIZES.items()}
        self.residency = Residency(clock=self.clock, meter=Scale(self.loaders, EMPTY))
        for key, loader in self.loaders.items():
            self.residency.add(key, loader)
        #: Lent just now, the innermost last.
        self.lent: list[tuple[StageKey, AbstractContextManager[Any]]] = []
        #: Of the loads that were begun ahead, those that may not have been used or dropped since.
        self.coming: set[StageKey] = set()
        self.used, self.evicted = 0, 0
        self.residency.on_change = self.heard

    def heard(self, why: str) -> None:
        if ": room for" in why:
            self.evicted += why.count(",") + 1

    @property
    def loaded(self) -> set[StageKey]:
        return {StageKey(each.model, each.stage) for each in self.residency.loaded()}

    @property
    def is_lent(self) -> set[StageKey]:
        return {key for key, _ in self.lent}

    # Operations.

    @rule(key=KEYS, fails=st.sampled_from([False, False, False, True]))
    def use(self, key: StageKey, fails: bool) -> None:
        was_loaded = key in self.loaded
        self.loaders[key].failures += fails and not was_loaded and key not in self.coming
        is_failing = self.loaders[key].failures > 0 and not was_loaded
        lending = self.residency.use(key)
        try:
            lending.__enter__()
        except OutOfMemoryError:
            assert is_failing or key in self.coming
            assert key not in self.loaded
            self.coming.discard(key)
            return
        self.coming.discard(key)
        self.used += not was_loaded
        self.lent.append((key, lending))
        rule = self.residency.rule
        idle = self.loaded - self.is_lent
        if rule.policy == "jit":
            assert not idle
        if rule.policy == "auto" and rule.budget_bytes is not None:
            held = EMPTY + sum(SIZES[each] for each in self.loaded | self.arrived)
            held += sum(expected_working("", SIZES[each], 0) for each in self.is_lent)
            assert held <= rule.budget_bytes or not idle

    @precondition(lambda self: self.lent)
    @rule(error=st.sampled_from([None, KeyError("x"), OutOfMemoryError("x"), KeyboardInterrupt()]))
    def give_back(self, error: BaseException | None) -> None:
        _, lending = self.lent.pop()
        swallowed = lending.__exit__(None if error is None else type(error), error, None)
        assert not swallowed

    @rule(key=KEYS)
    def drop(self, key: StageKey) -> None:
        was_loaded = key in self.loaded
        if key in self.is_lent:
            with pytest.raises(RuntimeError, match="at work"):
                self.residency.drop(key)
            assert key in self.loaded
            return
        assert self.residency.drop(key) or not was_loaded
        assert key not in self.loaded
        self.coming.discard(key)

    @rule(model=st.sampled_from(["a", "b"]))
    def drop_others(self, model: str) -> None:
        before = self.loaded
        others = {key for key in SIZES if key.model != model}
        if others & self.is_lent:
            with pytest.raises(RuntimeError, match="at work"):
                self.residency.drop_others(model)
            assert self.loaded == before
            return
        self.residency.drop_others(model)
        assert self.loaded == before - others
        self.coming -= others

    @rule(level=st.integers(0, 2))
    def press(self, level: int) -> None:
        self.residency.press(level)

    @rule(policy=POLICIES, budget=st.none() | st.integers(0, 2500), step=st.sampled_from([0, 0, 0, 1, 2, 3]))
    def set_rule(self, policy: Any, budget: int | None, step: int) -> None:
        self.residency.set_rule(Rule(policy, budget), step)

    @rule(order=st.lists(KEYS, max_size=5))
    def begin_job(self, order: list[StageKey]) -> None:
        self.residency.begin_job(order, 0)
        assert [cost.key for cost in self.residency.costs()] == order
        assert all(0 <= cost.uses_per_job <= 1 for cost in self.residency.costs())

    @precondition(lambda self: not self.lent)
    @rule(key=KEYS)
    def learn_anew(self, key: StageKey) -> None:
        self.residency.add(key, self.loaders[key])
        assert key not in self.loaded
        self.coming.discard(key)

    @rule(key=KEYS, fails=st.booleans())
    def load_ahead(self, key: StageKey, fails: bool) -> None:
        loader = self.loaders[key]
        was_held = key in self.loaded | self.arrived
        loader.begun.clear()
        before = loader.failures
        loader.failures += fails
        if self.residency.load_ahead(key):
            assert not was_held
            self.coming.add(key)
            coming = self.residency._entries[key].coming
            assert coming is not None
            coming.future.exception(10)  # how far it is would be another thread's to say, and differ each time
        else:
            loader.failures = before

    # What is always so.

    @property
    def arrived(self) -> set[StageKey]:
        """What was loaded ahead, and waits to be used."""
        return {key for key, loader in self.loaders.items() if len(loader.alive)} - self.loaded

    @invariant()
    def what_it_says_is_in_memory(self) -> None:
        assert self.loaded <= {key for key, loader in self.loaders.items() if len(loader.alive) == 1}
        assert self.arrived <= self.coming
        assert self.is_lent <= self.loaded

    @invariant()
    def counts_what_it_did(self) -> None:
        counts = self.residency.counts
        assert counts.loads == self.used == sum(counts.by_stage.values())
        assert counts.evictions == self.evicted
        assert counts.loads <= sum(loader.loads for loader in self.loaders.values())

    def teardown(self) -> None:
        while self.lent:
            self.give_back(None)
        self.residency.drop_all()
        assert not any(len(loader.alive) for loader in self.loaders.values())
        assert self.residency.other_bytes == EMPTY


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

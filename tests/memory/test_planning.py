"""What gives way to what: properties of the planner, over stages of any size and price."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderkiln.worker.memory.planning import (
    TIGHTEST,
    Rule,
    StageCost,
    StageKey,
    foresee,
    make_room,
    need_bytes,
    tighten,
)

# Quarters add up to the same sum in any order, so that prices can be compared to the bit.
SECONDS = st.integers(0, 20).map(lambda quarters: quarters / 4)
USES = st.sampled_from([0.0, 0.25, 1.0])
RULES = st.builds(Rule, st.sampled_from(["resident", "auto", "jit"]), st.none() | st.integers(0, 600), st.just(False))
AUTO = st.builds(lambda budget: Rule("auto", budget), st.integers(0, 600))
OTHER = st.integers(0, 50)


@st.composite
def some_stages(draw: st.DrawFn, least: int = 0, most: int = 8) -> list[StageCost]:
    count = draw(st.integers(least, most))
    return [
        StageCost(
            StageKey(f"m{number % 2}", f"s{number}"),
            draw(st.integers(1, 100)),
            draw(st.integers(0, 50)),
            draw(SECONDS),
            draw(USES),
        )
        for number in range(count)
    ]


class Scene:
    """Some stages in memory, some of them at work, and one that is wanted."""

    def __init__(self, stages: list[StageCost], is_loaded: bool, at_work: set[StageKey], other: int) -> None:
        self.wanted, self.other = stages[0], other
        self.loaded = stages if is_loaded else stages[1:]
        self.at_work = at_work & {each.key for each in self.loaded}
        self.idle = [each for each in stages[1:] if each.key not in at_work]
        self.busy = [each for each in stages[1:] if each.key in at_work]

    def plan(self, rule: Rule) -> tuple[StageKey, ...]:
        return make_room(self.wanted, self.loaded, self.at_work, rule, self.other)

    def held(self, dropped: set[StageKey]) -> int:
        """What is in memory with the wanted stage at work, once some were dropped."""
        kept = [each for each in self.idle if each.key not in dropped]
        return (
            self.other
            + sum(each.size_bytes for each in kept)
            + sum(each.size_bytes + each.working_bytes for each in (*self.busy, self.wanted))
        )


@st.composite
def scenes(draw: st.DrawFn, most: int = 9) -> Scene:
    stages = draw(some_stages(1, most))
    at_work = draw(st.sets(st.sampled_from([each.key for each in stages]), max_size=2))
    return Scene(stages, draw(st.booleans()), at_work, draw(OTHER))


class TestMakeRoom:
    @given(scenes(), AUTO)
    def test_what_stays_fits_or_nothing_is_left_to_drop(self, scene: Scene, rule: Rule) -> None:
        dropped = set(scene.plan(rule))
        assert scene.held(dropped) <= (rule.budget_bytes or 0) or dropped == {each.key for each in scene.idle}

    @given(scenes(), RULES)
    def test_drops_only_what_is_there_and_idle(self, scene: Scene, rule: Rule) -> None:
        plan = scene.plan(rule)
        assert set(plan) <= {each.key for each in scene.idle}
        assert len(set(plan)) == len(plan)

    @given(scenes(most=14), RULES, st.randoms(use_true_random=False))
    def test_the_order_has_no_say(self, scene: Scene, rule: Rule, random: Random) -> None:
        plan = scene.plan(rule)
        scene.loaded = random.sample(scene.loaded, len(scene.loaded))
        assert scene.plan(rule) == plan

    @given(scenes(), st.none() | st.integers(0, 600))
    def test_policies_without_a_choice(self, scene: Scene, budget: int | None) -> None:
        assert scene.plan(Rule("resident", budget)) == ()
        assert scene.plan(Rule("auto", None)) == ()
        assert set(scene.plan(Rule("jit", budget))) == {each.key for each in scene.idle}

    @given(scenes(most=14), AUTO)
    def test_nothing_is_dropped_in_vain(self, scene: Scene, rule: Rule) -> None:
        dropped = set(scene.plan(rule))
        for key in dropped:
            assert scene.held(dropped - {key}) > (rule.budget_bytes or 0)

    @given(scenes(), AUTO)
    @settings(max_examples=200)
    def test_is_the_cheapest_way(self, scene: Scene, rule: Rule) -> None:
        dropped = set(scene.plan(rule))
        subsets = chain.from_iterable(combinations(scene.idle, count) for count in range(len(scene.idle) + 1))
        enough = [
            sum(each.seconds_per_job for each in subset)
            for subset in subsets
            if scene.held({each.key for each in subset}) <= (rule.budget_bytes or 0)
        ]
        if enough:
            assert sum(each.seconds_per_job for each in scene.idle if each.key in dropped) == min(enough)

    @given(st.randoms(use_true_random=False), st.integers(0, 3000))
    @settings(max_examples=20)
    def test_many_stages_are_not_compared_in_every_combination(self, random: Random, budget: int) -> None:
        keys = [StageKey("m", f"s{number}") for number in range(60)]
        stages = [StageCost(key, random.randint(1, 100), 0, random.random(), 1.0) for key in keys]
        scene = Scene(stages, False, set(), 0)
        dropped = set(scene.plan(Rule("auto", budget)))  # 2**59 combinations would never end
        assert scene.held(dropped) <= budget or len(dropped) == 59
        assert all(scene.held(dropped - {key}) > budget for key in dropped)


class TestForesee:
    @given(some_stages(), AUTO, OTHER)
    def test_stays_within_the_budget_where_each_stage_does(
        self, order: list[StageCost], rule: Rule, other: int
    ) -> None:
        single = max((each.at_work_bytes for each in order), default=0)
        peak = foresee(order, rule, other).peak_bytes
        assert other + single <= peak <= max(rule.budget_bytes or 0, other + single)

    @given(some_stages(), OTHER)
    def test_just_in_time_takes_the_largest_stage_alone(self, order: list[StageCost], other: int) -> None:
        usage = foresee(order, Rule("jit"), other)
        assert usage.peak_bytes == other + max((each.at_work_bytes for each in order), default=0)
        needed = [each.key for each in order if each.uses_per_job >= 0.5]
        if len(needed) > 1:
            assert usage.resident == ()
            assert list(usage.loads) == needed

    @given(some_stages(), OTHER)
    def test_what_is_resident_loads_once(self, order: list[StageCost], other: int) -> None:
        usage = foresee(order, Rule("resident"), other)
        assert usage.loads == ()
        assert usage.load_seconds == 0
        assert usage.resident == tuple(each.key for each in order)
        working = max((each.working_bytes for each in order), default=0)
        assert usage.peak_bytes <= other + sum(each.size_bytes for each in order) + working

    @given(some_stages(), OTHER, st.integers(0, 100))
    def test_a_budget_that_is_large_enough_is_none(self, order: list[StageCost], other: int, more: int) -> None:
        budget = need_bytes(order, Rule("resident"), other) + more
        assert foresee(order, Rule("auto", budget), other) == foresee(order, Rule("resident"), other)

    @given(some_stages(), RULES, OTHER)
    def test_what_is_always_there_is_never_loaded(self, order: list[StageCost], rule: Rule, other: int) -> None:
        usage = foresee(order, rule, other)
        assert not set(usage.resident) & set(usage.loads)
        if rule.policy == "jit":
            assert len(usage.resident) <= 1
        costs = {each.key: each for each in order}
        assert usage.load_seconds <= sum(costs[key].load_seconds for key in usage.loads)

    @given(some_stages(), st.integers(0, 600), st.integers(0, 200), OTHER)
    def test_more_budget_never_lowers_the_peak(
        self, order: list[StageCost], budget: int, more: int, other: int
    ) -> None:
        # It may well raise load_seconds, now and then: what is cheapest to drop now need not be over a whole job.
        small, large = Rule("auto", budget), Rule("auto", budget + more)
        assert need_bytes(order, small, other) <= need_bytes(order, large, other)

    def test_text_encoders_whose_work_is_done_make_way(self) -> None:
        text, unet, vae = (StageCost(StageKey("m", name), 100, 0, 1.0) for name in ("text", "unet", "vae"))
        each_job = foresee([text, unet, vae], Rule("auto", 250))
        once = foresee([replace(text, uses_per_job=0.1), unet, vae], Rule("auto", 250))
        assert len(each_job.loads) > 0
        assert once.loads == ()
        assert once.resident == (unet.key, vae.key)

    def test_jobs_that_take_turns(self) -> None:
        sizes = {"a": (5, 3, 2.0), "b": (6, 4, 2.0), "c": (10, 4, 3.0), "d": (11, 0, 2.0)}
        order = [StageCost(StageKey("m", name), *of_it) for name, of_it in sizes.items()]
        usage = foresee(order, Rule("auto", 25))
        # c by every second job, and by the one between a, b and d.
        assert [key.stage for key in usage.loads] == ["a", "b", "c", "d"]
        assert usage.load_seconds == (3 + 6) / 2
        assert usage.resident == ()


class TestTighten:
    @given(some_stages(), RULES, OTHER)
    def test_each_step_needs_no_more_than_the_one_before(self, order: list[StageCost], rule: Rule, other: int) -> None:
        needs = [need_bytes(order, tighten(rule, step, order, other), other) for step in range(TIGHTEST + 2)]
        assert needs == sorted(needs, reverse=True)

    @given(some_stages(), RULES, OTHER, st.integers(1, 5))
    def test_never_raises_a_budget(self, order: list[StageCost], rule: Rule, other: int, step: int) -> None:
        tight = tighten(rule, step, order, other)
        if tight.policy == "auto" and rule.budget_bytes is not None and rule.budget_bytes >= other:
            assert tight.budget_bytes is not None
            assert tight.budget_bytes <= rule.budget_bytes

    @pytest.mark.parametrize("step", range(TIGHTEST + 2))
    def test_resident_is_left_alone(self, step: int) -> None:
        assert tighten(Rule("resident", 5), step, [], 0) == Rule("resident", 5)

    def test_what_each_step_does(self) -> None:
        order = [StageCost(StageKey("m", name), 100) for name in ("text", "unet", "vae")]
        auto, jit = Rule("auto", 1000), Rule("jit")
        assert [tighten(auto, step, order, 40) for step in range(4)] == [
            auto,
            Rule("auto", 40 + 225),  # of the three, not of a budget that has room for ten
            Rule("jit", 1000),
            Rule("jit", 1000, in_tiles=True),
        ]
        assert tighten(Rule("auto", 240), 1, order, 40) == Rule("auto", 40 + 150)
        assert tighten(Rule("auto"), 1, order, 40) == Rule("auto", 40 + 225)
        assert [tighten(jit, step, order) for step in range(4)] == [jit, *[Rule("jit", None, in_tiles=True)] * 3]
        assert tighten(auto, 99, order) == Rule("jit", 1000, in_tiles=True)

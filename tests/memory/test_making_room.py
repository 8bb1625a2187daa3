"""The residency manager under rules: what it drops, what it keeps, and what it learns."""

from __future__ import annotations

from typing import Any

import pytest

from renderkiln.worker.memory.planning import Rule
from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.memory.sizes import expected_working
from renderkiln.worker.memory.stages import Measured

from .fakes import EMPTY, OTHER, TEXT, TEXT_2, UNET, VAE, Clock, Loader, Scale, World, at_work


class TestAuto:
    def test_drops_what_costs_least(self, world: World) -> None:
        world.residency.set_rule(Rule("auto", at_work(TEXT, UNET)))
        world.work(TEXT, UNET)
        assert world.loaded == {TEXT, UNET}
        world.work(VAE)
        assert world.loaded == {UNET, VAE}
        assert world.said[-2:] == ["text_encoder dropped: room for vae_decoder", "vae_decoder loaded"]
        assert world.residency.counts.evictions == 1

    def test_keeps_what_is_at_work(self, world: World) -> None:
        world.residency.set_rule(Rule("auto", 1))
        with world.residency.use(TEXT), world.residency.use(VAE):
            assert world.loaded == {TEXT, VAE}
        world.work(UNET)
        assert world.loaded == {UNET}

    def test_keeps_other_models_where_there_is_room(self, world: World) -> None:
        world.residency.set_rule(Rule("auto", at_work(UNET, OTHER)))
        world.work(UNET, OTHER, UNET)
        assert world.residency.counts.loads == 2

    def test_learns_what_work_takes(self, world: World) -> None:
        world.residency.begin_job((TEXT, UNET), pixels=64)
        world.residency.set_rule(Rule("auto", EMPTY + 1000 + 100 + 400))
        world.work(TEXT, UNET)
        assert world.loaded == {UNET}  # so much is expected of a UNet for 64 pixels
        world.work(UNET, working=400)
        assert world.residency.costs()[1].working_bytes == 400
        world.work(TEXT, UNET)
        assert world.loaded == {TEXT, UNET}
        world.work(UNET, working=401)
        world.work(UNET, working=400)
        assert world.loaded == {UNET}
        # Four times the pixels take four times as much, and fewer no less than was seen.
        for pixels, working in ((256, 1604), (16, 401)):
            world.residency.begin_job((UNET,), pixels)
            assert world.residency.costs()[0].working_bytes == working
        assert world.residency.measured("a")["unet"] == (1000, Measured(8.0, 401, 64))

    def test_learns_how_long_loads_take(self, world: World) -> None:
        world.residency.begin_job((UNET,), 0)
        assert world.residency.costs()[0].load_seconds == pytest.approx(1000 / 1e9)
        world.work(UNET)
        assert world.residency.costs()[0].load_seconds == 8
        world.residency.drop_all()
        assert world.residency.costs()[0].load_seconds == 8

    def test_what_was_known_before_counts_until_it_is_measured(self, world: World) -> None:
        world.residency.begin_job((UNET, VAE), 100, {"unet": Measured(3.0, 77, 100)})
        costs = {cost.key: cost for cost in world.residency.costs()}
        assert (costs[UNET].load_seconds, costs[UNET].working_bytes) == (3, 77)
        assert costs[VAE].working_bytes == expected_working("vae_decoder", 100, 100)
        world.work(UNET)
        world.residency.begin_job((UNET,), 100, {"unet": Measured(3.0, 77, 100)})
        assert world.residency.costs()[0].load_seconds == 8

    def test_a_text_encoder_that_is_not_needed_any_more_goes_first(self, world: World) -> None:
        order = (TEXT_2, UNET, VAE)
        world.residency.begin_job(order, 0)
        world.work(*order)
        world.residency.set_rule(Rule("auto", at_work(TEXT, UNET, VAE) + 101))
        world.work(TEXT)
        assert TEXT_2 in world.loaded  # dearer to bring back than the VAE, in which 100 bytes were enough
        assert VAE not in world.loaded
        world.residency.drop(TEXT)
        for _ in range(4):
            world.residency.begin_job(order, 0)
            world.work(UNET, VAE)
        assert world.loaded == {TEXT_2, UNET, VAE}
        assert world.residency.costs()[0].uses_per_job == pytest.approx(0.7**3)
        world.work(TEXT)
        assert world.loaded == {TEXT, UNET, VAE}

    def test_measures_what_else_the_process_holds(self, world: World) -> None:
        assert world.residency.other_bytes == EMPTY
        world.work(TEXT)
        world.scale.empty = 500
        world.residency.drop(TEXT)
        assert world.residency.other_bytes == 500
        world.scale.empty = 0
        world.work(TEXT)
        world.residency.drop(TEXT)
        assert world.residency.other_bytes == EMPTY  # never less than at the beginning

    def test_has_room_for(self, world: World) -> None:
        def has_room(rule: Rule) -> bool:
            world.residency.set_rule(rule)
            return world.residency.has_room_for(UNET, VAE)

        assert has_room(Rule("auto", at_work(UNET, VAE)))
        assert not has_room(Rule("auto", at_work(UNET, VAE) - 1))
        assert has_room(Rule("auto"))
        assert has_room(Rule("resident", 1))
        assert not has_room(Rule("jit"))
        assert world.residency.has_room_for(UNET)
        assert world.residency.has_room_for()


class TestTiles:
    def test_as_a_last_resort(self, world: World) -> None:
        for policy in ("resident", "auto", "jit"):
            world.residency.set_rule(Rule(policy, in_tiles=True))  # type: ignore[arg-type]
            assert world.residency.needs_tiles(VAE)
            world.residency.set_rule(Rule(policy))  # type: ignore[arg-type]
            assert not world.residency.needs_tiles(VAE)

    @pytest.mark.parametrize("policy", ["auto", "jit"])
    def test_where_it_would_not_fit_even_alone(self, world: World, policy: Any) -> None:
        world.residency.set_rule(Rule(policy, at_work(VAE)))
        assert not world.residency.needs_tiles(VAE)
        world.residency.set_rule(Rule(policy, at_work(VAE) - 1))
        assert world.residency.needs_tiles(VAE)
        world.residency.set_rule(Rule("resident", 1))
        assert not world.residency.needs_tiles(VAE)

    @pytest.mark.parametrize("policy", ["auto", "jit"])
    def test_pressure_and_a_first_step_do_not_change_pictures(self, world: World, policy: Any) -> None:
        world.residency.begin_job((VAE,), 0)
        rule = Rule(policy, at_work(VAE))
        world.residency.set_rule(rule)
        for level in (1, 2):
            world.residency.press(level)
            assert not world.residency.needs_tiles(VAE)
        world.residency.press(0)
        if policy == "auto":
            for step in (1, 2):
                world.residency.set_rule(rule, step)
                assert not world.residency.needs_tiles(VAE)
        world.residency.set_rule(rule, step=3)
        assert world.residency.needs_tiles(VAE)
        world.residency.press(1)
        assert world.residency.needs_tiles(VAE)

    def test_work_in_tiles_is_not_taken_for_all_that_it_takes(self, world: World) -> None:
        world.residency.begin_job((VAE,), 64)
        world.residency.set_rule(Rule("jit", in_tiles=True))
        world.work(VAE, working=77)
        assert world.residency.costs()[0].working_bytes == expected_working("vae_decoder", 100, 64)
        world.residency.set_rule(Rule("jit"))
        world.work(VAE, working=77)
        assert world.residency.costs()[0].working_bytes == 77


class TestPressure:
    ORDER = (TEXT, TEXT_2, VAE)

    @pytest.fixture(autouse=True)
    def _all_loaded(self, world: World) -> None:
        world.residency.set_rule(Rule("auto", 10_000))
        world.residency.begin_job(self.ORDER, 0)
        world.work(*self.ORDER)

    def test_some_drops_what_is_idle_once(self, world: World) -> None:
        with world.residency.use(TEXT_2):
            world.residency.press(1)
            assert world.loaded == {TEXT_2}
        assert world.said[-1] == "text_encoder, vae_decoder dropped: memory pressure"
        world.residency.press(1)
        assert world.loaded == {TEXT_2}
        world.work(VAE)
        assert world.loaded == {TEXT_2, VAE}  # three quarters of what all take has room for these
        world.work(TEXT)
        assert TEXT_2 in world.loaded
        assert len(world.loaded) == 2

    def test_much_leaves_one_at_a_time(self, world: World) -> None:
        world.residency.press(2)
        assert world.loaded == set()
        world.work(*self.ORDER)
        assert world.loaded == {VAE}
        world.residency.press(1)  # falling: nothing is dropped for that
        assert world.loaded == {VAE}
        world.residency.press(0)
        assert world.residency.rule == Rule("auto", 10_000)
        world.work(*self.ORDER)
        assert world.loaded == set(self.ORDER)

    def test_is_heard_of_before_a_stage_is_put_to_work(self, world: World) -> None:
        world.residency.listen = lambda: world.residency.press(2)
        loads = world.residency.counts.loads
        world.work(TEXT_2)
        assert world.loaded == {TEXT_2}
        assert world.residency.counts.loads == loads  # not dropped just to be loaded again

    def test_changes_nothing_for_other_policies(self, world: World) -> None:
        for rule in (Rule("resident"), Rule("jit")):
            world.residency.set_rule(rule)
            world.residency.press(2)
            assert world.loaded == set(self.ORDER)
            assert world.residency.rule == rule
            world.residency.press(0)

    def test_adds_nothing_to_memory_that_ran_out(self, world: World) -> None:
        world.residency.set_rule(Rule("auto", 10_000), step=2)
        world.residency.press(1)
        assert world.residency.rule.policy == "jit"


def test_a_stage_that_holds_more_than_its_files_is_counted_as_what_it_holds() -> None:
    clock = Clock()
    in_memory = Loader(clock, 800_000_000)
    on_disk = Loader(clock, 400_000_000)  # in 16 bits, say, which what runs it widens
    on_disk.load = in_memory.load  # type: ignore[method-assign]
    residency = Residency(meter=Scale({UNET: in_memory}))
    residency.add(UNET, on_disk)
    residency.begin_job([UNET], 0)
    assert residency.costs()[0].size_bytes == 400_000_000
    with residency.use(UNET):
        assert residency.loaded()[0].size_bytes == 800_000_000

"""Stages that stay together, and stages that are loaded beside the work at hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from renderkiln.schema.errors import OutOfMemoryError
from renderkiln.worker.memory.planning import Rule, StageKey

from .fakes import EMPTY, OTHER, SIZES, TEXT, TEXT_2, UNET, VAE, Loader, World, at_work


class TestTogether:
    @pytest.mark.parametrize("rule", [Rule("jit"), Rule("auto", at_work(UNET))])
    def test_where_they_fit_where_the_largest_does(self, world: World, rule: Rule) -> None:
        world.residency.set_rule(rule)
        world.residency.begin_job((TEXT, TEXT_2, UNET, VAE), 0)
        world.work(VAE)
        with world.residency.together((TEXT, TEXT_2)) as together:
            assert together
            for _ in range(3):
                world.work(TEXT, TEXT_2)
            assert {TEXT, TEXT_2} <= world.loaded
        assert world.residency.counts.by_stage == {"vae_decoder": 1, "text_encoder": 1, "text_encoder_2": 1}
        world.work(UNET)
        assert world.loaded == {UNET}

    @pytest.mark.parametrize("rule", [Rule("jit"), Rule("auto", at_work(TEXT_2))])
    def test_not_where_they_would_take_more(self, world: World, rule: Rule) -> None:
        world.residency.set_rule(rule)
        world.residency.begin_job((TEXT, TEXT_2, VAE), 0)
        with world.residency.together((TEXT, TEXT_2)) as together:
            assert not together
            world.work(TEXT, TEXT_2)
            assert world.loaded == {TEXT_2}
        with world.residency.together((TEXT,)) as together:
            assert together

    def test_only_one_of_them_works_at_a_time(self, world: World) -> None:
        # 320 is the two of them and the working set of the larger one.
        world.residency.set_rule(Rule("auto", EMPTY + 320 + 100))
        world.residency.begin_job((TEXT, TEXT_2, UNET, VAE), 0)
        world.work(VAE)
        with world.residency.together((TEXT, TEXT_2)):
            world.work(TEXT, TEXT_2, TEXT)
        assert world.loaded == {TEXT, TEXT_2, VAE}

    def test_an_error_ends_it(self, world: World) -> None:
        world.residency.set_rule(Rule("jit"))
        world.residency.begin_job((TEXT, TEXT_2, UNET), 0)
        with pytest.raises(KeyError, match="nothing"), world.residency.together((TEXT, TEXT_2)):
            world.work(TEXT, StageKey("a", "nothing"))
        world.work(TEXT_2)
        assert world.loaded == {TEXT_2}


class TestLoadAhead:
    @pytest.fixture(autouse=True)
    def loader(self, world: World) -> Iterator[Loader]:
        loader = Loader(world.clock, *SIZES[UNET])
        world.loaders[UNET] = loader
        world.residency.add(UNET, loader)
        loader.may_go_on.clear()
        yield loader
        loader.may_go_on.set()

    def test_counts_once_and_is_used(self, world: World, loader: Loader) -> None:
        world.work(TEXT)
        assert world.residency.load_ahead(UNET)
        assert loader.begun.wait(10)
        assert world.loaded == {TEXT}
        assert not world.residency.load_ahead(UNET)
        world.work(TEXT)  # meanwhile
        loader.may_go_on.set()
        world.work(UNET)
        assert world.loaded == {TEXT, UNET}
        assert (loader.loads, world.residency.counts.by_stage["unet"]) == (1, 1)
        assert not world.residency.load_ahead(UNET)

    def test_counts_what_was_waited_for(self, world: World, loader: Loader) -> None:
        loader.may_go_on.set()
        world.residency.load_ahead(UNET)
        coming = world.residency._entries[UNET].coming
        assert coming is not None
        coming.future.result(10)
        world.work(UNET)
        assert world.residency.counts.load_seconds == 0
        assert world.residency.measured("a")["unet"][1].load_seconds == 8

    @pytest.mark.parametrize("how", ["drop", "drop_all", "forget", "press", "add", "room"])
    def test_dropped_while_it_comes(self, world: World, loader: Loader, how: str) -> None:
        world.residency.set_rule(Rule("auto", at_work(TEXT, UNET)))
        assert world.residency.load_ahead(UNET)
        assert loader.begun.wait(10)
        threading.Timer(0.01, loader.may_go_on.set).start()
        if how == "drop":
            assert world.residency.drop(UNET)
        elif how == "drop_all":
            assert world.residency.drop_all()
        elif how == "forget":
            world.residency.forget("a")
        elif how == "press":
            world.residency.press(1)
        elif how == "add":
            world.residency.add(UNET, loader)
        else:
            world.work(OTHER)
        assert loader.loads == 1
        assert len(loader.alive) == 0
        assert UNET not in world.loaded
        assert world.residency.counts.by_stage.get("unet", 0) == (how == "room")
        assert world.residency.other_bytes == EMPTY

    def test_a_failure_shows_when_it_is_used(self, world: World, loader: Loader) -> None:
        loader.failures = 1
        loader.may_go_on.set()
        assert world.residency.load_ahead(UNET)
        with pytest.raises(OutOfMemoryError), world.residency.use(UNET):
            pytest.fail("must not come here")
        assert world.loaded == set()
        world.work(UNET)
        assert world.loaded == {UNET}
        assert (loader.loads, world.residency.counts.loads) == (1, 1)

    def test_a_failure_that_is_dropped_shows_nowhere(self, world: World, loader: Loader) -> None:
        loader.failures = 1
        loader.may_go_on.set()
        assert world.residency.load_ahead(UNET)
        world.residency.drop(UNET)
        world.work(UNET)
        assert world.loaded == {UNET}

    def test_is_for_some_only(self, world: World, loader: Loader) -> None:
        assert not world.residency.load_ahead(StageKey("a", "nothing"))
        world.residency.set_rule(Rule("jit"))
        assert not world.residency.load_ahead(UNET)
        world.residency.set_rule(Rule("auto", at_work(TEXT, UNET) - 1))
        world.work(TEXT)
        assert not world.residency.load_ahead(UNET)
        assert not loader.begun.is_set()

    def test_what_is_measured_meanwhile_does_not_count(self, world: World, loader: Loader) -> None:
        world.residency.begin_job((TEXT, UNET), 64)
        world.work(TEXT, working=30)
        world.residency.load_ahead(UNET)
        world.work(TEXT, working=900)
        assert world.residency.costs()[0].working_bytes == 30

"""The residency manager: loads on first use, drops on request, and stays consistent when loading fails."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest

from renderkiln.schema.errors import OutOfMemoryError
from renderkiln.worker.memory.planning import StageKey
from renderkiln.worker.memory.residency import Residency

from .fakes import Clock, Loader, Stage

UNET, VAE, OTHER = StageKey("a", "unet"), StageKey("a", "vae_decoder"), StageKey("b", "unet")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def handed_back() -> list[float]:
    """When memory was handed back to the system."""
    return []


@pytest.fixture
def residency(clock: Clock, handed_back: list[float]) -> Residency:
    residency = Residency(hand_back=lambda: handed_back.append(clock.now), clock=clock)
    for key in (UNET, VAE, OTHER):
        residency.add(key, Loader(clock))
    return residency


def names(residency: Residency) -> list[tuple[str, str]]:
    return [(stage.model, stage.stage) for stage in residency.loaded()]


def test_loads_once_and_measures(residency: Residency) -> None:
    with residency.use(UNET) as first:
        pass
    with residency.use(UNET) as second:
        pass
    assert first is second
    (stage,) = residency.loaded()
    assert (stage.model, stage.stage, stage.size_bytes, stage.load_seconds) == ("a", "unet", 100, 2)
    assert (residency.counts.loads, residency.counts.load_seconds) == (1, 2)


def test_dropping_leaves_no_reference(residency: Residency) -> None:
    with residency.use(UNET) as stage:
        reference = weakref.ref(stage)
    del stage
    assert residency.drop(UNET)
    gc.collect()
    assert reference() is None
    assert names(residency) == []
    assert not residency.drop(UNET)
    with residency.use(UNET):
        assert residency.counts.loads == 2


def test_one_model_makes_room_for_another(residency: Residency) -> None:
    with residency.use(UNET), residency.use(VAE):
        pass
    residency.drop_others("a")
    assert len(residency.loaded()) == 2
    residency.drop_others("b")
    assert residency.loaded() == ()


def test_a_failed_load_counts_for_nothing(residency: Residency, clock: Clock) -> None:
    loader = Loader(clock)
    loader.failures = 1
    residency.add(UNET, loader)
    with pytest.raises(OutOfMemoryError), residency.use(UNET):
        pytest.fail("must not come here")
    assert residency.loaded() == ()
    with residency.use(UNET):
        assert names(residency) == [("a", "unet")]
    assert residency.counts.loads == 1


def test_an_error_in_use_gives_the_stage_back(residency: Residency) -> None:
    with pytest.raises(KeyboardInterrupt), residency.use(UNET):
        raise KeyboardInterrupt
    assert residency.drop_all()


def test_what_a_load_or_a_drop_freed_is_handed_back(residency: Residency, handed_back: list[float]) -> None:
    with residency.use(UNET):
        assert len(handed_back) == 1, "before the stage is at work"
    with residency.use(UNET):
        assert len(handed_back) == 1
    assert residency.drop(UNET)
    assert len(handed_back) == 2
    assert not residency.drop(UNET)
    assert len(handed_back) == 2


def test_what_is_lent_is_not_dropped(residency: Residency) -> None:
    with residency.use(VAE):
        pass
    with residency.use(UNET):
        with residency.use(UNET):
            pass
        with pytest.raises(RuntimeError, match="at work"):
            residency.drop_all()
        assert names(residency) == [("a", "unet"), ("a", "vae_decoder")]
        assert residency.drop(VAE)
    assert residency.drop(UNET)


def test_forgetting_a_model_drops_it(residency: Residency) -> None:
    with residency.use(UNET):
        pass
    residency.forget("a")
    assert residency.loaded() == ()
    with pytest.raises(KeyError), residency.use(UNET):
        pass


def test_forgetting_a_model_begins_anew(residency: Residency, clock: Clock) -> None:
    residency.begin_job((UNET, VAE), 0)
    residency.forget("a")
    residency.add(UNET, Loader(clock))
    residency.begin_job((UNET, VAE), 0)
    (cost,) = residency.costs()
    assert cost.uses_per_job == 1  # not one that nobody needs, which would be the first to go


def test_tells_what_it_did(residency: Residency) -> None:
    said: list[str] = []
    residency.on_change = said.append
    with residency.use(UNET):
        pass
    residency.drop(VAE)
    residency.drop_all()  # the others are known, and not in memory
    assert said == ["unet loaded", "unet dropped"]


def test_what_cannot_be_heard_or_measured_leaves_nothing_lent(residency: Residency) -> None:
    def fail(*_args: object) -> int:
        raise OSError("no such process")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residency, "listen", fail)
        with pytest.raises(OSError, match="no such"), residency.use(UNET):
            pytest.fail("must not come here")
        assert residency.loaded() == ()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(residency._meter, "begin", fail)
        with pytest.raises(OSError, match="no such"), residency.use(UNET):
            pytest.fail("must not come here")
    assert residency.drop(UNET)


class TestLeaks:
    def test_somebody_else_holds_it(self, residency: Residency, caplog: pytest.LogCaptureFixture) -> None:
        with residency.use(UNET) as stage:
            pass
        with caplog.at_level(logging.WARNING):
            residency.drop(UNET)
        assert "memory leak" in caplog.text
        assert names(residency) == []
        assert isinstance(stage, Stage)

    def test_a_cycle_is_none(self, residency: Residency, caplog: pytest.LogCaptureFixture) -> None:
        with residency.use(UNET) as stage:
            stage.itself = stage
            reference = weakref.ref(stage)
        del stage
        with caplog.at_level(logging.WARNING):
            residency.drop(UNET)
        assert reference() is None
        assert caplog.text == ""

    def test_what_cannot_be_watched_is_let_go_too(self, residency: Residency, clock: Clock) -> None:
        class Odd(Loader):
            def load(self) -> object:  # type: ignore[override]
                return object()

        residency.add(UNET, Odd(clock))
        with residency.use(UNET):
            pass
        assert residency.drop(UNET)
        assert names(residency) == []

"""What goes wrong anywhere between the stages leaves nothing behind: the next job renders as ever."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from renderkiln.schema import errors
from renderkiln.worker.engine.embeddings import CacheLimits, EmbeddingCache
from renderkiln.worker.engine.libraries import diffusers
from renderkiln.worker.engine.torch_loading import CLASSES
from renderkiln.worker.memory.planning import Rule
from renderkiln.worker.memory.residency import Residency

from .conftest import JIT, SHORT, SHORT_ORDER, MakeJit


def no_cache() -> EmbeddingCache:
    return EmbeddingCache(CacheLimits(0))


class Boundaries:
    """Raises an error when a stage is about to be put to work for the nth time."""

    def __init__(self, residency: Residency, nth: int, error: Exception) -> None:
        self.left, self.error = nth, error
        residency.listen = self.listen

    def listen(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


class TestFailures:
    @pytest.mark.parametrize(
        ("rule", "error", "seen"),
        [
            (JIT, errors.CanceledError("no more"), errors.CanceledError),
            (JIT, RuntimeError("broken"), errors.RenderFailedError),
            (JIT, MemoryError("full"), errors.OutOfMemoryError),
            (Rule("resident"), RuntimeError("broken"), errors.RenderFailedError),
        ],
    )
    def test_at_every_boundary_leave_all_in_order(
        self, make_jit: MakeJit, rule: Rule, error: Exception, seen: type[Exception]
    ) -> None:
        render, watch = make_jit(rule, cache=no_cache())
        reference = render(**SHORT)[0].rgb
        assert watch.uses == SHORT_ORDER
        for nth in range(1, len(SHORT_ORDER) + 1):
            watch.begin()
            Boundaries(watch.residency, nth, error)
            with pytest.raises(seen):
                render(**SHORT)
            assert len(watch.uses) == nth - 1
            Boundaries(watch.residency, 0, error)
            watch.begin()
            assert render(**SHORT)[0].rgb == reference

    @pytest.mark.parametrize("failing", ["CLIPTextModel", "UNet2DConditionModel", "AutoencoderKL"])
    @pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError("full"), errors.CanceledError("no more")])
    def test_at_work_leave_all_in_order(
        self, make_jit: MakeJit, monkeypatch: pytest.MonkeyPatch, failing: str, error: Exception
    ) -> None:
        render, watch = make_jit(cache=no_cache())
        reference = render(**SHORT)[0].rgb

        def fail(*_args: Any, **_call: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(CLASSES[failing], "decode" if failing == "AutoencoderKL" else "forward", fail)
            with pytest.raises(errors.RenderkilnError):
                render(**SHORT)
        error.__traceback__ = error.__context__ = error.__cause__ = None  # which holds on to what was at work
        watch.begin()
        assert render(**SHORT)[0].rgb == reference

    @pytest.mark.parametrize("error", [RuntimeError("broken"), ValueError("broken")])
    def test_of_a_later_image_yields_those_before(
        self, make_jit: MakeJit, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        render, watch = make_jit()
        wanted = render(num_images=3, **SHORT)[0].rgb
        forward, calls = diffusers.UNet2DConditionModel.forward, itertools.count(1)

        def fail(*args: Any, **call: Any) -> Any:
            if next(calls) == 2:
                raise type(error)("broken")
            return forward(*args, **call)

        monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", fail)
        images = render.begin(num_images=3, **SHORT)
        # The VAE is loaded while the failure waits, and that must not keep the UNet in memory: `watch` checks.
        assert next(images).rgb == wanted
        with pytest.raises(errors.RenderFailedError, match="broken"):
            next(images)
        assert list(images) == []
        watch.begin()

    def test_nan_in_a_later_image_yields_those_before(self, make_jit: MakeJit, monkeypatch: pytest.MonkeyPatch) -> None:
        render, watch = make_jit()
        wanted = render(num_images=3, **SHORT)[0].rgb
        forward, calls = diffusers.UNet2DConditionModel.forward, itertools.count(1)

        def spoil(*args: Any, **call: Any) -> Any:
            (output,) = forward(*args, **call)
            return (output * (float("nan") if next(calls) == 2 else 1),)

        monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", spoil)
        images = render.begin(num_images=3, **SHORT)
        assert next(images).rgb == wanted
        with pytest.raises(errors.BadImageError, match="NaN after step 1 of 1"):
            next(images)
        watch.begin()

    def test_a_cancel_in_a_later_image_yields_those_before(self, make_jit: MakeJit) -> None:
        render, watch = make_jit()

        def cancel(k: int, _step: int, _num_steps: int) -> None:
            if k == 1:
                raise errors.CanceledError("by a person")

        images = render.begin(num_images=3, on_step=cancel, **SHORT)
        assert next(images).k == 0
        with pytest.raises(errors.CanceledError, match="by a person"):
            next(images)
        watch.begin()

    def test_no_memory_in_a_later_image(self, make_jit: MakeJit) -> None:
        render, watch = make_jit()
        Boundaries(watch.residency, 4, MemoryError())
        with pytest.raises(errors.OutOfMemoryError):
            render(num_images=3, **SHORT)
        assert "vae_decoder" not in watch.uses  # memory is short: nothing more is loaded
        watch.begin()

    def test_whoever_asks_may_go_away(self, make_jit: MakeJit) -> None:
        render, watch = make_jit()
        images = render.begin(num_images=3, **SHORT)
        next(images)
        images.close()  # type: ignore[attr-defined]
        watch.begin()
        assert len(render(num_images=3, **SHORT)) == 3

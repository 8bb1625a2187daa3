"""Prompts of jobs that wait are encoded while the text encoder is there, and found again later."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from renderkiln.schema import RenderSpec, errors
from renderkiln.worker.engine.base import Ahead
from renderkiln.worker.engine.embeddings import CacheLimits, EmbeddingCache
from renderkiln.worker.engine.libraries import diffusers
from renderkiln.worker.engine.torch_engine import TorchEngine
from renderkiln.worker.memory.planning import Rule

from .conftest import SHORT, SHORT_ORDER, MakeJit, Renderer


def jobs_of(fields: dict[str, Any], count: int) -> list[RenderSpec]:
    """Specs that differ in their prompts."""
    return [RenderSpec(model="tiny", prompt=f"a circle of {number}", **fields) for number in range(count)]


class TestAhead:
    def test_a_long_list_loads_the_text_encoder_a_few_times(self, render: Renderer, make_jit: MakeJit) -> None:
        fields = {**SHORT, "negative_prompt": "blue"}
        specs = jobs_of(fields, 100)
        just_in_time, watch = make_jit()
        heard = 0

        def between() -> None:
            nonlocal heard
            heard += 1

        pictures = []
        for number, spec in enumerate(specs):
            ahead = Ahead(specs[number + 1 : number + 49], between)
            pictures += just_in_time(prompt=spec.prompt, ahead=ahead, **fields)
        assert watch.residency.counts.by_stage["text_encoder"] <= 4
        assert watch.uses.count("text_encoder") == 101  # a prompt each, and the negative prompt once
        assert heard >= 97
        for number in (0, 1, 48, 49, 99):
            assert pictures[number].rgb == render(prompt=specs[number].prompt, **fields)[0].rgb

    def test_not_where_all_stays(self, make_jit: MakeJit) -> None:
        render, watch = make_jit(Rule("resident"))
        render(ahead=Ahead(jobs_of(SHORT, 3), lambda: None), **SHORT)
        assert watch.uses == SHORT_ORDER

    def test_both_encoders_of_sdxl_stay_for_it(self, make_jit: MakeJit) -> None:
        render, watch = make_jit()
        specs = [spec.model_copy(update={"model": "tiny-xl"}) for spec in jobs_of(SHORT, 5)]
        for number, spec in enumerate(specs):
            render(model="tiny-xl", prompt=spec.prompt, ahead=Ahead(specs[number + 1 :], lambda: None), **SHORT)
        assert watch.residency.counts.by_stage == {
            "text_encoder": 1,
            "text_encoder_2": 1,
            "unet": 5,
            "vae_decoder": 5,
        }

    @pytest.mark.parametrize("room", [0, 100_000])
    def test_no_further_than_can_be_kept(self, make_jit: MakeJit, room: int) -> None:
        # A prompt and its negative prompt take 77 × 32 × 4 bytes each.
        render, watch = make_jit(cache=EmbeddingCache(CacheLimits(room)))
        specs = jobs_of(SHORT, 12)
        for number, spec in enumerate(specs):
            render(prompt=spec.prompt, ahead=Ahead(specs[number + 1 :], lambda: None), **SHORT)
        encoded = watch.uses.count("text_encoder")
        assert encoded == (24 if room == 0 else 13)
        assert watch.residency.counts.by_stage["text_encoder"] == (12 if room == 0 else 2)

    @pytest.mark.parametrize("error", [RuntimeError("x"), ValueError("x"), IndexError("x"), KeyError("x")])
    def test_a_spec_that_fails_fails_in_its_own_job(
        self, make_jit: MakeJit, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        render, watch = make_jit()
        good, bad, later = jobs_of(SHORT, 3)
        encode = diffusers.StableDiffusionPipeline.encode_prompt

        def fail(self: Any, prompt: Any, *args: Any, **call: Any) -> Any:
            if prompt == bad.prompt:
                raise error
            return encode(self, prompt, *args, **call)

        monkeypatch.setattr(diffusers.StableDiffusionPipeline, "encode_prompt", fail)
        assert render(prompt=good.prompt, ahead=Ahead([bad, later], lambda: None), **SHORT)[0].rgb
        assert render(prompt=later.prompt, **SHORT)[0].rgb
        assert watch.residency.counts.by_stage["text_encoder"] == 1
        with pytest.raises(errors.RenderFailedError, match="x"):
            render(prompt=bad.prompt, **SHORT)

    def test_layers_that_are_not_there(self, make_jit: MakeJit) -> None:
        render, _ = make_jit()
        ahead = Ahead(jobs_of({**SHORT, "clip_skip": 12}, 1), lambda: None)
        assert render(ahead=ahead, **SHORT)[0].rgb

    def test_no_memory_ends_it(self, make_jit: MakeJit, monkeypatch: pytest.MonkeyPatch) -> None:
        render, watch = make_jit()
        encode = diffusers.StableDiffusionPipeline.encode_prompt

        def fail(self: Any, prompt: Any, *args: Any, **call: Any) -> Any:
            if prompt and prompt.endswith("1"):
                raise MemoryError
            return encode(self, prompt, *args, **call)

        monkeypatch.setattr(diffusers.StableDiffusionPipeline, "encode_prompt", fail)
        assert render(ahead=Ahead(jobs_of(SHORT, 5), lambda: None), **SHORT)[0].rgb
        assert watch.uses.count("text_encoder") == 3

    def test_a_cancel_stops_it(self, render: Renderer, make_jit: MakeJit) -> None:
        just_in_time, watch = make_jit()
        asked = itertools.count(1)

        def between() -> None:
            if next(asked) == 3:
                raise errors.CanceledError("by a person")

        with pytest.raises(errors.CanceledError, match="by a person"):
            just_in_time(ahead=Ahead(jobs_of(SHORT, 9), between), **SHORT)
        assert watch.uses == ["text_encoder"] * 4
        watch.begin()
        assert just_in_time(**SHORT)[0].rgb == render(**SHORT)[0].rgb

    def test_what_between_raises_is_not_disguised(self, make_jit: MakeJit) -> None:
        def between() -> None:
            raise BrokenPipeError

        render, _ = make_jit()
        with pytest.raises(BrokenPipeError):
            render(ahead=Ahead(jobs_of(SHORT, 1), between), **SHORT)


class TestAnotherEngine:
    """Over the same folder of encoded prompts: what an earlier process encoded."""

    @pytest.fixture
    def model(self, library: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(library / "tiny", tmp_path / "model"))

    @pytest.fixture
    def begin(self, model: Path, tmp_path: Path) -> Callable[..., Renderer]:
        def begin(**settings: Any) -> Renderer:
            cache = EmbeddingCache(CacheLimits(1_000_000, 1_000_000), tmp_path / "encoded")
            return Renderer(TorchEngine(lambda name, revision: model, device="cpu", cache=cache, **settings))

        return begin

    def test_needs_no_text_encoder(self, begin: Callable[..., Renderer]) -> None:
        first = begin()(model="model", negative_prompt="blue", **SHORT)[0]
        render = begin()
        assert render(model="model", negative_prompt="blue", **SHORT)[0].rgb == first.rgb
        assert [stage.stage for stage in render.engine.residency.loaded()] == ["unet", "vae_decoder"]
        assert render(model="model", prompt="a star", **SHORT)[0].rgb != first.rgb
        assert render.engine.residency.counts.by_stage["text_encoder"] == 1

    @pytest.mark.parametrize("changed", ["text_encoder/model.safetensors", "tokenizer/vocab.json", "dtype"])
    def test_encodes_anew_what_would_come_out_otherwise(
        self, begin: Callable[..., Renderer], model: Path, changed: str
    ) -> None:
        begin()(model="model", **SHORT)
        settings = {}
        if changed == "dtype":
            settings["dtype"] = "bfloat16"
        else:
            os.utime(model / changed, (1, 1))
        render = begin(**settings)
        render(model="model", **SHORT)
        assert render.engine.residency.counts.by_stage["text_encoder"] == 1

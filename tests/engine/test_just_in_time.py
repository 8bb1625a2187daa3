"""One stage in memory at a time: the same pictures, few loads, and no stage that stays behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from renderkiln.schema import errors
from renderkiln.worker.engine.libraries import diffusers
from renderkiln.worker.engine.torch_engine import TorchEngine
from renderkiln.worker.memory.planning import Rule
from renderkiln.worker.memory.sizes import expected_working

from . import models
from .conftest import JIT, SHORT, MakeJit, Renderer

INIT = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), "RGB")
MASK = Image.new("L", (32, 32), 0)
MASK.paste(255, (16, 0, 32, 32))


class TestPictures:
    @pytest.mark.parametrize("task", ["txt2img", "img2img", "inpaint"])
    @pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
    @pytest.mark.parametrize("controlled", [False, True])
    def test_are_those_of_stages_that_stay(
        self, render: Renderer, make_jit: MakeJit, task: str, model: str, controlled: bool
    ) -> None:
        just_in_time, watch = make_jit()
        edges = "edges-xl" if model == "tiny-xl" else "edges"
        fields: dict[str, Any] = {"model": model, "negative_prompt": "blue", "seed": 5, "clip_skip": 1}
        if task != "txt2img":
            fields["init_image"] = render.picture(INIT)
        if task == "inpaint":
            fields["mask_image"] = render.picture(MASK)
        if controlled:
            fields["controlnets"] = ({"model": edges, "image": render.picture(INIT)},)
        just_in_time.inputs = render.inputs
        count = 2 if controlled else 3
        ours = just_in_time(num_images=count, **fields)
        assert [image.rgb for image in ours] == [image.rgb for image in render(num_images=count, **fields)]
        assert just_in_time.steps == render.steps
        # What would take turns with each prompt, or with each step, stays together meanwhile.
        side_by_side = {frozenset({"text_encoder", "text_encoder_2"})} if model == "tiny-xl" else set()
        side_by_side |= {frozenset({"unet", f"controlnet-{edges}"})} if controlled else set()
        assert {frozenset(held) for held in watch.held if len(held) > 1} == side_by_side
        assert set(watch.residency.counts.by_stage.values()) == {1}

    def test_without_guidance_and_without_a_negative_prompt(self, render: Renderer, make_jit: MakeJit) -> None:
        just_in_time, _ = make_jit()
        for model in ("tiny", "tiny-xl"):
            for fields in ({"guidance_scale": 1.0}, {}, {"negative_prompt": "blue"}):
                ours = just_in_time(model=model, **SHORT, **fields)[0].rgb
                assert ours == render(model=model, **SHORT, **fields)[0].rgb

    def test_with_a_safety_checker(self, tmp_path: Path) -> None:
        models.save_sd(tmp_path / "lax", threshold=2)
        models.save_sd(tmp_path / "strict", threshold=-2)
        render = Renderer(TorchEngine(lambda name, revision: tmp_path / name, device="cpu"))
        resident = [image.rgb for image in render(model="lax", num_images=2)]
        render.engine.residency.set_rule(JIT)
        assert [image.rgb for image in render(model="lax", num_images=2)] == resident
        assert [stage.stage for stage in render.engine.residency.loaded()] == ["safety_checker"]
        with pytest.raises(errors.SafetyFilteredError, match="image 0"):
            render(model="strict", num_images=2)

    @pytest.mark.parametrize("model", ["tiny", "tiny-xl"])
    def test_of_a_vae_that_shifts_its_latents(self, library: Path, tmp_path: Path, model: str) -> None:
        # diffusers heeds this for SDXL, and for nothing else.
        shutil.copytree(library / model, tmp_path / "model")
        path = tmp_path / "model" / "vae" / "config.json"
        shifts = {"latents_mean": [0.5, 0.1, -0.2, 0.3], "latents_std": [2.0, 3.0, 1.5, 0.5]}
        path.write_text(json.dumps({**json.loads(path.read_text()), **shifts}))
        kind = diffusers.StableDiffusionXLPipeline if model == "tiny-xl" else diffusers.StableDiffusionPipeline
        pipeline = kind.from_pretrained(tmp_path / "model", use_safetensors=True, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        call = {"prompt": "a red circle", "num_inference_steps": 3, "guidance_scale": 7.5}
        theirs = pipeline(generator=torch.Generator().manual_seed(5), **call).images[0]
        render = Renderer(TorchEngine(lambda name, revision: tmp_path / name, device="cpu"))
        assert render(model="model", seed=5)[0].rgb == theirs.tobytes()


class TestLoads:
    def test_each_stage_once_for_several_images(self, make_jit: MakeJit) -> None:
        render, watch = make_jit()
        images = render(num_images=3)
        assert watch.residency.counts.by_stage == {"text_encoder": 1, "unet": 1, "vae_decoder": 1}
        assert [image.loads for image in images] == [3, 0, 0]
        assert all(image.load_seconds >= 0 for image in images)
        render(num_images=3)
        assert watch.residency.counts.by_stage == {"text_encoder": 1, "unet": 2, "vae_decoder": 2}

    def test_as_many_images_as_are_denoised_ahead(self, render: Renderer, make_jit: MakeJit) -> None:
        two_ahead, watch = make_jit(denoise_ahead=2)
        images = two_ahead(num_images=3)
        assert watch.residency.counts.by_stage == {"text_encoder": 1, "unet": 2, "vae_decoder": 2}
        assert [image.rgb for image in images] == [image.rgb for image in render(num_images=3)]
        assert [image.k for image in two_ahead(num_images=4, skip=(0, 2))] == [1, 3]
        assert watch.residency.counts.by_stage == {"text_encoder": 1, "unet": 3, "vae_decoder": 3}

    def test_a_budget_for_one_of_two_decodes_after_denoising(self, render: Renderer, make_jit: MakeJit) -> None:
        sizes = {each.stage: each.size_bytes for each in render.engine.warm_up("tiny").stages}
        vae = sizes["vae_decoder"] + expected_working("vae_decoder", sizes["vae_decoder"], 32 * 32)
        cramped, watch = make_jit(Rule("auto", vae + sizes["unet"] - 1))
        images = cramped(num_images=3)
        assert [image.rgb for image in images] == [image.rgb for image in render(num_images=3)]
        assert watch.residency.counts.by_stage == {"text_encoder": 1, "unet": 1, "vae_decoder": 1}
        assert not any({"unet", "vae_decoder"} <= {*held} for held in watch.held)
        assert set(watch.uses[-3:]) == {"vae_decoder"}
        ample, watch = make_jit(Rule("auto", 20_000_000))
        ample(num_images=2)
        assert "unet" in watch.uses[watch.uses.index("vae_decoder") :]
        assert watch.residency.counts.by_stage == {"text_encoder": 1, "unet": 1, "vae_decoder": 1}

    def test_pictures_that_a_job_begins_from_are_encoded_once(self, render: Renderer, make_jit: MakeJit) -> None:
        just_in_time, watch = make_jit()
        fields = {**SHORT, "num_inference_steps": 2}
        first = just_in_time(num_images=2, init_image=just_in_time.picture(INIT), **fields)
        assert watch.uses.count("vae_encoder") == 1
        other = just_in_time(init_image=just_in_time.picture(ImageOps.invert(INIT)), **fields)
        assert watch.uses.count("vae_encoder") == 2
        render.inputs = just_in_time.inputs
        assert [image.rgb for image in other] == [
            image.rgb for image in render(init_image=render.picture(ImageOps.invert(INIT)), **fields)
        ]
        assert other[0].rgb != first[0].rgb
        just_in_time(init_image=just_in_time.picture(ImageOps.invert(INIT)), **fields)
        assert watch.uses.count("vae_encoder") == 3  # nothing of one job stays for the next

    def test_another_model_takes_the_place_of_the_first(self, make_jit: MakeJit) -> None:
        render, watch = make_jit()
        first = render(**SHORT)[0].rgb
        assert render(model="other", **SHORT)[0].rgb != first
        watch.check()
        assert render(**SHORT)[0].rgb == first


class TestEnough:
    @pytest.mark.parametrize("ahead", [1, 2, 8])
    def test_what_was_begun_is_finished(self, make_jit: MakeJit, ahead: int) -> None:
        render, watch = make_jit(denoise_ahead=ahead)
        images = render(num_images=3, enough=lambda: True, **SHORT)
        assert [image.k for image in images] == [0]
        assert {k for k, _, _ in render.steps} == {0}
        watch.check()

    def test_is_asked_after_each_image(self, make_jit: MakeJit) -> None:
        render, _ = make_jit()
        images = render(num_images=4, enough=lambda: len(render.steps) >= 2, **SHORT)
        assert [image.k for image in images] == [0, 1]


def test_stages_of_one_job_are_told_once(render: Renderer) -> None:
    # The same ControlNet twice, with two pictures.
    edges = {"model": "edges", "image": render.picture(INIT)}
    render(controlnets=(edges, {**edges, "conditioning_scale": 0.5}), **SHORT)
    order = [cost.key.stage for cost in render.engine.residency.costs()]
    assert order == ["text_encoder", "controlnet-edges", "unet", "vae_decoder"]

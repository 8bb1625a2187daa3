"""Every scheduler that a spec can name renders, and renders the same again."""

from __future__ import annotations

from typing import Any

import pytest

from renderkiln.schema.schedulers import known_names, resolve
from renderkiln.worker.engine.libraries import diffusers
from renderkiln.worker.engine.schedulers import SchedulerFactory

from . import models
from .conftest import Renderer


@pytest.mark.parametrize("name", known_names())
def test_renders_twice_with_the_same_bytes(render: Renderer, name: str) -> None:
    first = render(scheduler=name, seed=2**32 - 2, num_inference_steps=4)[0]
    second = render(scheduler=name, seed=2**32 - 2, num_inference_steps=4)[0]
    assert first.rgb == second.rgb
    num_steps = render.steps[-1][2]
    assert render.steps[-1] == (0, num_steps, num_steps)


STOCHASTIC = ["ddpm", "dpm++ 2m sde", "dpm++ sde", "dpm2 a", "euler a", "lcm", "tcd"]


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_scheduler_draws_from_the_images_seed(render: Renderer, name: str) -> None:
    import torch

    torch.manual_seed(1)
    first = render(scheduler=name)[0].rgb
    torch.manual_seed(2)
    assert render(scheduler=name)[0].rgb == first
    assert render(scheduler=name, seed=1)[0].rgb != first


@pytest.mark.parametrize("name", ["euler a", "dpm++ 2m karras", "ddim", "unipc", "lcm"])
def test_equals_diffusers_own_swap_of_schedulers(render: Renderer, plain: Any, name: str) -> None:
    choice = resolve(name)
    theirs = plain(
        diffusers.StableDiffusionPipeline,
        "tiny",
        seed=5,
        scheduler=lambda config: getattr(diffusers, choice.class_name).from_config(
            config, clip_sample=False, **choice.options
        ),
        prompt="a red circle",
        num_inference_steps=5,
    )
    assert render(scheduler=name, seed=5, num_inference_steps=5)[0].rgb == theirs


@pytest.mark.parametrize("name", ["ddim", "dpm++ sde", "dpm2", "euler", "heun", "lms", "pndm", "unipc", "dpm++ 2s"])
def test_one_step_is_enough(render: Renderer, name: str) -> None:
    assert render(scheduler=name, num_inference_steps=1)


def test_a_choice_of_sigmas_turns_off_the_models_own() -> None:
    own = diffusers.DPMSolverMultistepScheduler(use_exponential_sigmas=True)
    built = SchedulerFactory(own).build("dpm++ 2m karras", seed=0)
    assert built.config.use_karras_sigmas
    assert not built.config.use_exponential_sigmas


def test_latents_are_never_clipped() -> None:
    # DDIM clips by default; a model that comes with another scheduler says nothing about it.
    factory = SchedulerFactory(diffusers.DPMSolverMultistepScheduler())
    assert factory.build("ddim", seed=0).config.clip_sample is False


def test_each_image_gets_a_fresh_scheduler() -> None:
    factory = SchedulerFactory(models.make_scheduler())
    assert factory.build(None, seed=0) is not factory.build(None, seed=0)
    assert type(factory.build(None, seed=0)).__name__ == "PNDMScheduler"

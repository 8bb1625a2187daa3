"""Builds schedulers by the names of a spec, from the settings that came with the model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.schedulers import CLASS_NAMES, resolve

from .libraries import diffusers

#: At most one of these can be on; choosing one by name turns off what the model's own scheduler had.
_SIGMA_SCHEDULES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


class SchedulerFactory:
    """Makes a fresh scheduler for each image: schedulers carry state from step to step.

    Args:
        own: the model's own scheduler, out of a pipeline: that corrects what old models have wrong.
    """

    def __init__(self, own: Any) -> None:
        self.class_name = type(own).__name__
        self._config: Mapping[str, Any] = dict(own.config)
        self._pristine: dict[str | None, Any] = {}
        self._checked: set[tuple[str | None, int]] = set()

    def build(self, name: str | None, seed: int) -> Any:
        """A scheduler that has not stepped yet.

        Args:
            name: as in a spec; None: the model's own.
            seed: of the image, for a scheduler that draws its own noise.

        Raises:
            InvalidSpecError: the scheduler cannot be built with this model's settings.
        """
        if name not in self._pristine:
            self._pristine[name] = self._construct(name)
        # A copy is a matter of a millisecond; KDPM2 takes eighty to construct.
        scheduler = copy.deepcopy(self._pristine[name])
        if hasattr(scheduler, "noise_sampler_seed"):
            # DPMSolverSDE, the one class whose step takes no generator, grows a Brownian tree from this.
            scheduler.noise_sampler_seed = seed
        return scheduler

    def check(self, name: str | None, num_inference_steps: int) -> None:
        """Tries whether a scheduler can make this many steps, before any model is loaded.

        Raises:
            InvalidSpecError: it cannot; says why.
        """
        if (name, num_inference_steps) in self._checked:
            return
        scheduler = self.build(name, seed=0)
        try:
            scheduler.set_timesteps(num_inference_steps)
            # Stable Diffusion 1.5 counts its steps from 1: of a thousand, the first is one beyond its table.
            if not hasattr(scheduler, "sigmas") and max(scheduler.timesteps) >= len(scheduler.alphas_cumprod):
                raise IndexError(f"the model knows {len(scheduler.alphas_cumprod)} moments, and these go beyond")
        except (ValueError, IndexError, NotImplementedError) as error:
            raise InvalidSpecError(
                f"scheduler {name or self.class_name!r} cannot make {num_inference_steps} steps: {error}"
            ) from None
        self._checked.add((name, num_inference_steps))

    def _construct(self, name: str | None) -> Any:
        choice = resolve(name) if name is not None else None
        class_name = self.class_name if choice is None else choice.class_name
        # Latents are not pictures: they go well beyond ±1. DDIM and DDPM clip unless told otherwise.
        options = {"clip_sample": False, **({} if choice is None else choice.options)}
        config = self._config
        if any(key in options for key in _SIGMA_SCHEDULES):
            config = {key: value for key, value in config.items() if key not in _SIGMA_SCHEDULES}
        try:
            return getattr(diffusers, class_name).from_config(config, **options)
        except (ValueError, TypeError, NotImplementedError, ImportError) as error:
            raise InvalidSpecError(f"scheduler {name or class_name!r} does not fit this model: {error}") from None


def is_supported(class_name: str) -> bool:
    """Whether a model may come with this scheduler."""
    return class_name in CLASS_NAMES

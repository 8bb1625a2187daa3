"""The seam between diffusers' pipelines and whatever runs a model's stages: torch modules, or a converted model.

`DiffusersEngine` asks a `ModelStages` for all that it needs to know of one model's stages, and nothing in it or in
`pipelines.py` knows what is behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from renderkiln.schema.spec import RenderSpec

from ..memory.stages import StageLoader
from ..runtimes.base import Array
from .base import EngineInfo


class ModelStages(Protocol):
    """The stages of one model. Reads small files only; what it hands out loads the stages."""

    @property
    def info(self) -> EngineInfo:
        """What runs this model: for announcements and messages."""

    @property
    def device(self) -> torch.device:
        """Where the tensors live that a pipeline and its stages hand to each other."""

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The only sizes, (width, height) in pixels, that can be rendered, the model's own first; empty: any."""

    @property
    def self_test(self) -> Path | None:
        """Where the picture of the self-test is or would be; None: these stages need none, or cannot make it."""

    def dtype(self, component: str, config: Any) -> torch.dtype:
        """In which precision a pipeline hands tensors to a component.

        Args:
            component: text_encoder, text_encoder_2, unet, vae, safety_checker or controlnet.
            config: the component's.
        """

    def has(self, stage: str) -> bool:
        """Whether there is such a stage: text_encoder, unet, vae_encoder, …"""

    def check(self, spec: RenderSpec) -> None:
        """Raises InvalidSpecError for what these stages cannot do, whatever the size."""

    def embed(self, text: str, script: str) -> Array:
        """A text's vectors, (n, E), by the system's text encoder; only where `check` lets a spec pass that asks for it.

        Raises:
            ModelLoadError, RenderFailedError: the system cannot do it, and why.
        """

    def loader(self, stage: str, class_name: str) -> StageLoader:
        """Loads a stage, which is then called as `stages.py` writes it.

        Args:
            class_name: of the component, as model_index.json has it.

        Raises:
            ModelLoadError: the stage's files are missing, damaged or pickles.
        """

    def controlnet_config(self, name: str) -> Mapping[str, Any]:
        """The values of a ControlNet's config.json, or none where it is not known.

        Raises:
            ModelNotFoundError: no such ControlNet is here, or none that works with this model.
            ModelLoadError: it is here, and cannot be used.
        """

    def controlnet_loader(self, name: str) -> StageLoader:
        """As `loader`, for a ControlNet by its name."""


class OpenStages(Protocol):
    """Opens the stages of a model, by its name and its folder. Raises ModelLoadError."""

    def __call__(self, model: str, folder: Path) -> ModelStages: ...

"""Makes the engine that a machine's settings ask for. Which kind of stages a model has is found out model by model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from renderkiln.home.controlnets import find_controlnet
from renderkiln.home.folder import DataFolder
from renderkiln.schema.errors import ModelLoadError

from ..models.choosing import Wishes, check_unit, engine_of, is_converted_only, pick_form
from ..protocol import FULL_PRECISION
from ..runtimes.opening import package_opener
from .base import EngineInfo
from .converted.model_stages import ConvertedModelStages
from .converted.multilingual import SystemText, SystemTextEncoder
from .diffusers_engine import DiffusersEngine, FindModel
from .embeddings import EmbeddingCache
from .model_stages import ModelStages
from .torch_engine import torch_options
from .torch_stages import TorchModelStages


@dataclass(frozen=True)
class EngineChoice:
    """The settings that decide what runs a model."""

    wishes: Wishes = field(default_factory=Wishes)
    #: Of the torch engine; see `pick_device` and `pick_dtype`.
    device: str = "auto"
    dtype: str = "auto"


#: The variant and the compute unit that were measured to be best for a model, or `FULL_PRECISION`, by its name.
Tuned = Callable[[str], tuple[str, str] | None]


def make_engine(
    choice: EngineChoice,
    find_model: FindModel,
    data: DataFolder,
    tuned: Tuned = lambda _model: None,
    system_text: SystemText | None = None,
    cache: EmbeddingCache | None = None,
    denoise_ahead: int = 8,
) -> DiffusersEngine:
    """The engine. `cache` and `denoise_ahead`: see `DiffusersEngine`.

    Raises:
        SettingsError: the device, the precision or the compute unit is not on this machine.
    """
    options = torch_options(choice.device, choice.dtype)
    check_unit(choice.wishes.compute_unit)
    text = system_text or SystemTextEncoder()

    def open_stages(model: str, folder: Path) -> ModelStages:
        form = pick_form(folder, choice.wishes, tuned(model))
        if form is None:
            if is_converted_only(folder):
                engine = engine_of(folder)
                raise ModelLoadError(f"{model} is converted, and has no weights for torch: use the {engine} engine")
            full = replace(options, dtype=torch.float32) if tuned(model) == FULL_PRECISION else options
            return TorchModelStages(folder, full, partial(find_controlnet, data))
        if form.unit != "reference" and options.device.type != "cpu":
            # Nothing in this process computes on torch's threads. What it does between predictions is too small for
            # several of them: they wait for each other, and take the cores that Core ML wants.
            torch.set_num_threads(1)
        return ConvertedModelStages(folder, form, package_opener(form.unit, data), text)

    wished = choice.wishes.engine
    unopened = EngineInfo(wished, choice.wishes.compute_unit, "float16", attention_slicing=False)
    info = unopened if wished in ("coreml", "coreai") else options.info
    return DiffusersEngine(find_model, open_stages, info, cache, denoise_ahead)

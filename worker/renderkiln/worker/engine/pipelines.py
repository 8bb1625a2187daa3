"""Builds diffusers' pipelines over stand-ins, from a model folder; reads small files only."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from renderkiln.schema.errors import ModelLoadError, UnsupportedHereError
from renderkiln.schema.spec import RenderSpec

from ..memory.planning import StageKey
from ..memory.residency import Residency
from ..models.weights import read_json
from ..runtimes.base import Array
from ..runtimes.naming import PROJECTION
from .libraries import diffusers, transformers
from .model_stages import ModelStages
from .prompts import Embed
from .schedulers import SchedulerFactory, is_supported
from .stages import (
    ControlNetStandIn,
    ControlNetStandIns,
    SafetyCheckerStandIn,
    StandIn,
    TextEncoderStandIn,
    UNetStandIn,
    VaeStandIn,
)

Task = Literal["txt2img", "img2img", "inpaint"]
Family = Literal["sd", "sdxl"]


def _tasks(prefix: str) -> dict[Task, Any]:
    return {
        "txt2img": getattr(diffusers, f"{prefix}Pipeline"),
        "img2img": getattr(diffusers, f"{prefix}Img2ImgPipeline"),
        "inpaint": getattr(diffusers, f"{prefix}InpaintPipeline"),
    }


PIPELINES: dict[Family, dict[Task, Any]] = {
    "sd": _tasks("StableDiffusion"),
    "sdxl": _tasks("StableDiffusionXL"),
}
CONTROLLED: dict[Family, dict[Task, Any]] = {
    "sd": _tasks("StableDiffusionControlNet"),
    "sdxl": _tasks("StableDiffusionXLControlNet"),
}
#: What model_index.json may call its pipeline. A model serves every task of its family, however it was saved.
FAMILIES: dict[str, Family] = {
    **{pipeline.__name__: family for family, tasks in PIPELINES.items() for pipeline in tasks.values()},
    "LatentConsistencyModelPipeline": "sd",  # the same components; the UNet says that guidance is embedded
    "LatentConsistencyModelImg2ImgPipeline": "sd",
}
#: The components that a family's pipelines need, and the classes that they may be of.
_TEXT = ("CLIPTextModel", "CLIPTextModelWithProjection")
_NEEDED: dict[Family, dict[str, tuple[str, ...]]] = {
    "sd": {"text_encoder": _TEXT, "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",)},
    "sdxl": {
        "text_encoder": _TEXT,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "unet": ("UNet2DConditionModel",),
        "vae": ("AutoencoderKL",),
    },
}


#: Pipelines of one model that are kept: a few objects each, without the models.
_PIPELINES_KEPT = 16
#: Whose arguments are a component's config, by the name that model_index.json gives.
_CONFIGURED = {
    "AutoencoderKL": diffusers.AutoencoderKL,
    "ControlNetModel": diffusers.ControlNetModel,
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
}


class Pipelines:
    """The pipelines of one model, one per task, over the same stand-ins.

    Args:
        name: under which the residency manager gets to know the model's stages; nothing is loaded.
        folder: the model's small files, in diffusers' layout.
        stages: what runs the model.
        on_decoded: see `VaeStandIn`.

    Raises:
        ModelLoadError: something is missing, damaged, a pickle, or of a kind that is not supported.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        stages: ModelStages,
        residency: Residency,
        on_decoded: Callable[[torch.Tensor], None],
    ) -> None:
        self.name, self.folder = name, folder
        self.stages, self._residency = stages, residency
        self._index = read_json(folder / "model_index.json")
        self.family = self._read_family()
        self._components: dict[str, Any] = {
            name: self._stand_in(name, on_decoded) for name in ("safety_checker", *_NEEDED[self.family])
        }
        self._projection = self._stage(PROJECTION, "") if stages.has(PROJECTION) else None
        self._add_small_parts()
        self._controlnets: dict[str, ControlNetStandIn] = {}
        self._built: dict[tuple[Task, bool, tuple[str, ...]], Any] = {}
        first = self.get("txt2img", safety_checker=False)
        self.schedulers = SchedulerFactory(first.scheduler)
        self.vae_scale_factor: int = first.vae_scale_factor
        self.latent_channels: int = self._components["vae"].config.latent_channels
        #: Whether the UNet takes a mask and a picture beside the latents, and so can do nothing without them.
        self.only_inpaints = self._read_channels() != self.latent_channels

    @property
    def native_size(self) -> tuple[int, int]:
        """Width and height, in pixels, that the model was made for."""
        if self.stages.sizes:
            return self.stages.sizes[0]
        size = self._components["unet"].config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return width * self.vae_scale_factor, height * self.vae_scale_factor

    @property
    def has_safety_checker(self) -> bool:
        return self._components["safety_checker"] is not None

    @property
    def latents_dtype(self) -> torch.dtype:
        """In which latents go from step to step."""
        dtype: torch.dtype = self._components["unet"].dtype
        return dtype

    def check(self, spec: RenderSpec) -> None:
        """Raises UnsupportedHereError if the stages that there are cannot do what a spec asks for."""
        if spec.task != "txt2img" and not self.stages.has("vae_encoder"):
            raise UnsupportedHereError(
                f"{spec.model!r} has no vae_encoder, which an init_image needs: convert it with that stage"
            )
        self.stages.check(spec)

    def embedder(self, spec: RenderSpec) -> Embed | None:
        """What embeds prompts in the place of the model's text encoder, where the spec asks for that."""
        if spec.text_encoder == "model":
            return None
        return lambda text: self._project(lambda _: self.stages.embed(text, spec.script))

    def test_embedder(self) -> Embed | None:
        """The same for a self-test: the system's encoder is not what it tests, so the vectors are noise of seed 0."""
        if self._projection is None:
            return None
        return lambda _text: self._project(lambda stage: np.random.RandomState(0).standard_normal((8, stage.width)))

    def _project(self, make_vectors: Callable[[Any], Array]) -> tuple[torch.Tensor, int]:
        assert self._projection is not None
        with self._residency.use(self._projection) as stage:
            vectors = make_vectors(stage)
            return stage(vectors), min(len(vectors), stage.tokens)

    def get(self, task: Task, *, safety_checker: bool, controlnets: tuple[str, ...] = ()) -> Any:
        """The diffusers pipeline for a task, the same object each time; its scheduler is the caller's to set.

        Args:
            safety_checker: run the model's safety checker, if it has one.
            controlnets: names of the ControlNets, in the order of their pictures.

        Raises:
            ModelNotFoundError, ModelLoadError, InvalidSpecError: a ControlNet is not here or cannot be used.
        """
        checked = safety_checker and self.has_safety_checker
        key = task, checked, controlnets
        if key not in self._built:
            pipelines = PIPELINES
            parts = dict(self._components)
            if controlnets:
                pipelines = CONTROLLED
                parts["controlnet"] = ControlNetStandIns([self._controlnet(name) for name in controlnets])
            if self.family == "sd":
                # Said here so that diffusers does not warn: leaving it out is the spec's choice.
                parts["requires_safety_checker"] = checked
            if not checked:
                parts.pop("safety_checker")
                parts |= {"safety_checker": None} if self.family == "sd" else {}
            pipeline = pipelines[self.family][task](**parts)
            pipeline.set_progress_bar_config(disable=True)
            if len(self._built) >= _PIPELINES_KEPT:
                del self._built[next(iter(self._built))]
            self._built[key] = pipeline
        return self._built[key]

    def _read_family(self) -> Family:
        class_name = self._index.get("_class_name")
        if class_name not in FAMILIES:
            raise ModelLoadError(
                f"{self.folder} holds a {class_name}, which renderkiln cannot run; it runs {', '.join(FAMILIES)}"
            )
        return FAMILIES[class_name]

    def _read_channels(self) -> int:
        channels: int = self._components["unet"].config.in_channels
        if channels not in (self.latent_channels, 2 * self.latent_channels + 1):
            raise ModelLoadError(f"{self.folder}: its UNet takes {channels} channels, which nothing here can fill")
        return channels

    def _class_name(self, name: str) -> str | None:
        """The class of a component, or None if the model has none of that name."""
        entry = self._index.get(name)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else None

    def _stand_in(self, name: str, on_decoded: Callable[[torch.Tensor], None]) -> StandIn | None:
        class_name = self._class_name(name)
        if name == "safety_checker" and (
            class_name is None or self.family != "sd" or not self.stages.has("safety_checker")
        ):
            return None
        allowed = _NEEDED[self.family].get(name, ("StableDiffusionSafetyChecker",))
        if class_name not in allowed:
            raise ModelLoadError(
                f"{self.folder}: its {name} is {class_name or 'missing'}; renderkiln can run {' or '.join(allowed)}"
            )
        config = self._config(class_name, read_json(self.folder / name / "config.json"))
        where = {"dtype": self.stages.dtype(name, config), "device": self.stages.device}
        if name == "vae":
            encoder = self._stage("vae_encoder", class_name)
            decoder = self._stage("vae_decoder", class_name)
            return VaeStandIn(self._residency, decoder, config, encoder=encoder, on_decoded=on_decoded, **where)
        key = self._stage(name, class_name)
        if name == "unet":
            controlled = self._stage("control-unet", class_name) if self.stages.has("control-unet") else key
            return UNetStandIn(self._residency, key, config, controlled=controlled, **where)
        kind = SafetyCheckerStandIn if name == "safety_checker" else TextEncoderStandIn
        return kind(self._residency, key, config, **where)

    def _stage(self, stage: str, class_name: str) -> StageKey:
        """Makes a stage known to the residency manager."""
        key = StageKey(self.name, stage)
        if self.stages.has(stage):
            self._residency.add(key, self.stages.loader(stage, class_name))
        return key

    def _controlnet(self, name: str) -> ControlNetStandIn:
        if name not in self._controlnets:
            config = self._config("ControlNetModel", self.stages.controlnet_config(name))
            key = StageKey(self.name, f"controlnet-{name}")
            self._residency.add(key, self.stages.controlnet_loader(name))
            dtype = self.stages.dtype("controlnet", config)
            self._controlnets[name] = ControlNetStandIn(
                self._residency, key, config, dtype=dtype, device=self.stages.device
            )
        return self._controlnets[name]

    def _config(self, class_name: str, values: Mapping[str, Any]) -> Any:
        """A component's config as its class would have it: the file's values over the class's defaults."""
        if class_name == "StableDiffusionSafetyChecker":
            return transformers.CLIPConfig(**values)
        if class_name in _TEXT:
            return transformers.CLIPTextConfig(**values)
        parameters = inspect.signature(_CONFIGURED[class_name].__init__).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        return diffusers.configuration_utils.FrozenDict({**defaults, **values})

    def _add_small_parts(self) -> None:
        """Tokenizers, the scheduler's settings and the like: small enough to stay for good."""
        parts = self._components
        for name in ("tokenizer", "tokenizer_2") if self.family == "sdxl" else ("tokenizer",):
            parts[name] = self._from_folder(transformers.CLIPTokenizer, name)
        class_name = self._class_name("scheduler")
        if class_name is None or not is_supported(class_name):
            raise ModelLoadError(f"{self.folder}: its scheduler, {class_name}, is not one that can be run")
        parts["scheduler"] = self._from_folder(getattr(diffusers, class_name), "scheduler")
        if self.family == "sdxl":
            parts["force_zeros_for_empty_prompt"] = self._index.get("force_zeros_for_empty_prompt", True)
            parts["add_watermarker"] = False
        else:
            wanted = parts["safety_checker"] is not None
            parts["feature_extractor"] = (
                self._from_folder(transformers.CLIPImageProcessor, "feature_extractor") if wanted else None
            )

    def _from_folder(self, kind: Any, name: str) -> Any:
        folder = self.folder / name
        if not folder.is_dir():
            raise ModelLoadError(f"{name} is missing from {self.folder}: the model is not complete")
        try:
            return kind.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # these libraries raise what comes: OSError, ValueError, KeyError …
            raise ModelLoadError(f"{folder} cannot be read: {error}") from error

"""The stages of a converted model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from renderkiln.schema.errors import ModelNotFoundError, UnsupportedHereError, did_you_mean
from renderkiln.schema.spec import RenderSpec

from ...models.choosing import Form
from ...models.weights import read_json
from ...runtimes import manifest
from ...runtimes.base import Array
from ...runtimes.naming import PROJECTION, controlnet_names, controlnet_stage
from ...runtimes.opening import OpenPackage, open_stage
from ..base import EngineInfo
from .adapters import adapt
from .interface import check_manifest, unet_dtype
from .multilingual import SystemText, SystemTextEncoder


class ConvertedModelStages:
    """The stages of a folder of converted models; a `ModelStages`.

    Args:
        folder: of the model's small files.
        form: which of the model's forms, and where its manifest and packages are: the same folder, or one below it.
        open_package: loads a package on a runtime.
        system_text: what embeds prompts for a model that was made for the system's text encoder; macOS's unless told.

    Raises:
        ModelLoadError: the manifest is not one of ours, does not fit the files, or describes what cannot be run.
    """

    #: Pipelines compute on the CPU, between the stages.
    device = torch.device("cpu")

    def __init__(
        self, folder: Path, form: Form, open_package: OpenPackage, system_text: SystemText | None = None
    ) -> None:
        self._folder, self._converted, self._open_package = folder, form.folder, open_package
        self._system_text = system_text or SystemTextEncoder()
        self._manifest = manifest.load(form.folder)
        vae = read_json(folder / "vae" / "config.json")
        check_manifest(self._manifest, 2 ** (len(vae.get("block_out_channels", [0])) - 1))
        dtype = unet_dtype(self._manifest)
        self.info = EngineInfo(form.engine, form.unit, dtype, attention_slicing=False, variant=self._manifest.variant)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """See `ModelStages.sizes`."""
        return self._manifest.sizes

    @property
    def self_test(self) -> Path:
        """See `ModelStages.self_test`."""
        return self._converted / manifest.SELF_TEST

    def dtype(self, component: str, config: Any) -> torch.dtype:
        """See `ModelStages.dtype`. Schedulers are better off with float32, and each model casts what it takes."""
        return torch.float32

    def has(self, stage: str) -> bool:
        """See `ModelStages.has`."""
        return self._source(stage) in self._manifest.stages

    def check(self, spec: RenderSpec) -> None:
        """See `ModelStages.check`."""
        if spec.text_encoder == "system-multilingual":
            if not self.has(PROJECTION):
                raise UnsupportedHereError(
                    f"text_encoder: {spec.model!r} was not converted for the system's text encoder, which takes "
                    "`renderkiln convert --multilingual-projection`; leave it out"
                )
            self._system_text.check()
        elif self.has(PROJECTION):
            raise UnsupportedHereError(
                f"text_encoder: {spec.model!r} was converted for the system's text encoder; ask for system-multilingual"
            )
        if spec.clip_skip is not None:
            raise UnsupportedHereError(
                f"clip_skip: {spec.model!r} is a converted model, whose text encoder gives its last layer only; "
                "leave it out, or render with the torch engine"
            )

    def embed(self, text: str, script: str) -> Array:
        """See `ModelStages.embed`."""
        return self._system_text.embed(text, script)

    def loader(self, stage: str, class_name: str) -> ConvertedStageLoader:
        """See `ModelStages.loader`."""
        info = self._manifest.stages[self._source(stage)]
        return ConvertedStageLoader(info, class_name, self._converted, self._open_package)

    def controlnet_config(self, name: str) -> Mapping[str, Any]:
        """See `ModelStages.controlnet_config`."""
        path = self._folder / self._controlnet(name) / "config.json"
        return read_json(path) if path.exists() else {}

    def controlnet_loader(self, name: str) -> ConvertedStageLoader:
        """See `ModelStages.controlnet_loader`."""
        info = self._manifest.stages[self._controlnet(name)]
        return ConvertedStageLoader(info, "ControlNetModel", self._converted, self._open_package)

    def _source(self, stage: str) -> str:
        """A model that was converted for ControlNets has one UNet, which renders without them too."""
        return "control-unet" if stage == "unet" and "unet" not in self._manifest.stages else stage

    def _controlnet(self, name: str) -> str:
        stage = controlnet_stage(name)
        if stage not in self._manifest.stages or "control-unet" not in self._manifest.stages:
            there = controlnet_names(self._manifest.stages)
            raise ModelNotFoundError(
                f"this model was converted without the ControlNet {name!r}.{did_you_mean(name, there)} "
                f"It has {', '.join(there) or 'none'}; `renderkiln convert --controlnet` takes folders and OWNER/NAME"
            )
        return stage


@dataclass(frozen=True)
class ConvertedStageLoader:
    """Loads one stage; a `StageLoader`."""

    info: manifest.StageInfo
    class_name: str
    folder: Path
    open_package: OpenPackage

    @property
    def size_bytes(self) -> int:
        """Of its packages on disk, which is about what their weights take."""
        return self.info.size_bytes

    def load(self) -> Any:
        """The stage, ready to be called. Raises ModelLoadError or OutOfMemoryError."""
        return adapt(self.info.stage, self.class_name, open_stage(self.folder, self.info, self.open_package))

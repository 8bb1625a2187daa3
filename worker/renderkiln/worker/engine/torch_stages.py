"""Stages as torch modules, on mps, cuda or the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from renderkiln.schema.errors import InvalidSpecError, ModelLoadError, OutOfMemoryError, UnsupportedHereError
from renderkiln.schema.spec import RenderSpec

from ..models.weights import VAE_HALVES, Weights, find_weights, read_json
from ..runtimes.base import Array
from ..runtimes.naming import PROJECTION
from .base import EngineInfo
from .device import is_out_of_memory
from .torch_loading import load_module

#: What of a VAE's module either half does not need.
_OTHER_HALF = {"vae_encoder": ("decoder", "post_quant_conv"), "vae_decoder": ("encoder", "quant_conv")}


@dataclass(frozen=True)
class TorchOptions:
    """How stages are held."""

    dtype: torch.dtype
    device: torch.device
    attention_slicing: bool = False

    @property
    def info(self) -> EngineInfo:
        precision = str(self.dtype).removeprefix("torch.")
        return EngineInfo("torch", str(self.device), precision, self.attention_slicing)


class TorchModelStages:
    """The stages of a model in diffusers' layout; a `ModelStages`.

    Args:
        folder: the model's.
        find_model: finds a ControlNet's folder by its name; raises ModelNotFoundError.
    """

    #: Any.
    sizes: tuple[tuple[int, int], ...] = ()
    #: torch's kernels are tested by torch.
    self_test: Path | None = None

    def __init__(self, folder: Path, options: TorchOptions, find_model: Callable[[str], Path]) -> None:
        self._folder, self._options, self._find_model = folder, options, find_model
        self.info = options.info
        self.device = options.device

    def dtype(self, component: str, config: Any) -> torch.dtype:
        """See `ModelStages.dtype`."""
        # Where a config does not say, it does: that is diffusers' default.
        overflows = component == "vae" and getattr(config, "force_upcast", True) and self._is_sdxl
        return torch.float32 if overflows and self._options.dtype == torch.float16 else self._options.dtype

    @cached_property
    def _is_sdxl(self) -> bool:
        return (self._folder / "text_encoder_2").is_dir()

    def has(self, stage: str) -> bool:
        """See `ModelStages.has`. The UNet takes residuals itself; what a folder lacks shows when it is opened."""
        return stage not in ("control-unet", PROJECTION)

    def check(self, spec: RenderSpec) -> None:
        """See `ModelStages.check`: torch's modules do whatever else a spec can ask for."""
        if spec.text_encoder != "model":
            raise UnsupportedHereError(
                f"text_encoder: {spec.model!r} is not converted, and only converted models render with macOS's text "
                "encoder; leave it out, or convert the model with --multilingual-projection"
            )

    def embed(self, text: str, script: str) -> Array:
        """See `ModelStages.embed`."""
        raise AssertionError("`check` refuses such specs")

    def loader(self, stage: str, class_name: str) -> TorchStageLoader:
        """See `ModelStages.loader`."""
        component = "vae" if stage in VAE_HALVES else stage
        config = SimpleNamespace(**read_json(self._folder / component / "config.json"))
        return self._loader(stage, class_name, self._folder / component, self.dtype(component, config))

    def controlnet_config(self, name: str) -> Mapping[str, Any]:
        """See `ModelStages.controlnet_config`."""
        folder = self._find_model(name)
        config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
        if config.get("_class_name") != "ControlNetModel":
            raise InvalidSpecError(f"{name!r} is not a ControlNet: its config.json names {config.get('_class_name')}")
        return config

    def controlnet_loader(self, name: str) -> TorchStageLoader:
        """See `ModelStages.controlnet_loader`."""
        return self._loader("controlnet", "ControlNetModel", self._find_model(name), self._options.dtype)

    def _loader(self, stage: str, class_name: str, folder: Path, dtype: torch.dtype) -> TorchStageLoader:
        weights = find_weights(folder, half=dtype.itemsize < 4)
        options = self._options
        return TorchStageLoader(stage, class_name, folder, weights, dtype, options.device, options.attention_slicing)


@dataclass(frozen=True)
class TorchStageLoader:
    """Loads one stage; a `StageLoader`."""

    #: text_encoder, text_encoder_2, unet, controlnet, vae_encoder, vae_decoder or safety_checker.
    stage: str
    class_name: str
    #: The component's folder: its config.json and weights.
    folder: Path
    weights: Weights
    dtype: torch.dtype
    device: torch.device
    attention_slicing: bool = False

    @property
    def size_bytes(self) -> int:
        prefixes = VAE_HALVES.get(self.stage, ("",))
        return self.weights.size_bytes(self.dtype.itemsize, prefixes)

    def load(self) -> torch.nn.Module:
        """The module, on its device, ready to be called.

        Raises:
            ModelLoadError: the weights do not fit the config, or cannot be read.
            OutOfMemoryError: there is no room.
        """
        try:
            # A model outlives the call that loads it: its weights must not be tensors of inference mode.
            with torch.inference_mode(False), torch.no_grad():
                return self._load()
        except ModelLoadError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"no room for {self.stage} ({self.size_bytes / 2**20:.0f} MB) on {self.device}: {error}"
                ) from error
            raise ModelLoadError(f"{self.folder} cannot be loaded as {self.class_name}: {error}") from error

    def _load(self) -> torch.nn.Module:
        without = _OTHER_HALF.get(self.stage, ())
        module: Any = load_module(self.class_name, self.folder, self.weights, self.dtype, self.device, without)
        if self.attention_slicing and self.stage == "unet":
            module.set_attention_slice("auto")
        return module

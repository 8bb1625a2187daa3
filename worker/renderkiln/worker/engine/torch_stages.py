"""Loads the stages of a model as torch modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from renderkiln.schema.errors import ModelLoadError, OutOfMemoryError

from .device import is_out_of_memory
from .files import Weights
from .libraries import diffusers, transformers

#: The classes that a component may be of, by the name that model_index.json gives.
CLASSES: dict[str, Any] = {
    "AutoencoderKL": diffusers.AutoencoderKL,
    "CLIPTextModel": transformers.CLIPTextModel,
    "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
    "StableDiffusionSafetyChecker": diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker,
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
}
#: Either half of a VAE: what its tensors' names begin with, and what of the module the half does not need.
VAE_HALVES = {
    "vae_encoder": (("encoder.", "quant_conv."), ("decoder", "post_quant_conv")),
    "vae_decoder": (("decoder.", "post_quant_conv."), ("encoder", "quant_conv")),
}


@dataclass(frozen=True)
class TorchStageLoader:
    """Loads one stage; a `StageLoader`."""

    #: text_encoder, text_encoder_2, unet, vae_encoder, vae_decoder or safety_checker.
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
        prefixes = VAE_HALVES[self.stage][0] if self.stage in VAE_HALVES else ("",)
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
        from_pretrained: Callable[..., tuple[torch.nn.Module, dict[str, Any]]]
        from_pretrained = CLASSES[self.class_name].from_pretrained
        module, info = from_pretrained(
            self.folder,
            dtype=self.dtype,
            variant=self.weights.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        # Both libraries fill what a file lacks with random numbers, and go on.
        missing = sorted(info["missing_keys"])
        if missing:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ModelLoadError(f"the weights in {self.folder} lack {shown}: the model is not complete")
        if self.stage in VAE_HALVES:
            for part in VAE_HALVES[self.stage][1]:
                setattr(module, part, None)
        if self.attention_slicing and self.stage == "unet":
            module.set_attention_slice("auto")
        return module.to(self.device).eval().requires_grad_(False)

"""The torch engine: diffusers' pipelines over torch modules, on mps, cuda or the CPU."""

from __future__ import annotations

from pathlib import Path

from .device import pick_device, pick_dtype, wants_attention_slicing
from .diffusers_engine import DiffusersEngine, FindModel
from .embeddings import EmbeddingCache
from .torch_stages import TorchModelStages, TorchOptions


class TorchEngine(DiffusersEngine):
    """Renders models in diffusers' layout.

    Args:
        find_model: see `FindModel`.
        device: auto (mps, else cuda, else cpu), or one of these by name.
        dtype: auto (float16 on an accelerator, float32 on the CPU), float32, float16 or bfloat16.
        cache, denoise_ahead: see `DiffusersEngine`.

    Raises:
        SettingsError: no such device or precision here.
    """

    def __init__(
        self,
        find_model: FindModel,
        device: str = "auto",
        dtype: str = "auto",
        cache: EmbeddingCache | None = None,
        denoise_ahead: int = 8,
    ) -> None:
        options = torch_options(device, dtype)

        def open_stages(model: str, folder: Path) -> TorchModelStages:
            return TorchModelStages(folder, options, lambda name: find_model(name, None))

        super().__init__(find_model, open_stages, options.info, cache, denoise_ahead)


def torch_options(device: str = "auto", dtype: str = "auto") -> TorchOptions:
    """How this machine holds torch modules. Raises SettingsError."""
    picked = pick_device(device)
    return TorchOptions(pick_dtype(dtype, picked), picked, wants_attention_slicing(picked))

"""Stand-ins for the models of a diffusers pipeline.

A pipeline is built over these instead of over loaded models, and runs unchanged: a stand-in knows its config,
dtype and device from small files, and borrows the real stage from the residency manager for the length of
each call. What stands behind it need not be torch: it is whatever the stage's loader made, called as written
here.

- `TextEncoderStandIn`: `stage(input_ids, attention_mask=None, output_hidden_states=False)`, input_ids (B, 77)
  int64, gives an output whose [0] is (B, 77, C); for clip_skip also `stage.final_layer_norm` or that of its
  `text_model`.
- `UNetStandIn`: `stage(sample, timestep, encoder_hidden_states=…, return_dict=False, …)` gives
  ((B, 4, h, w),).
- `ControlNetStandIn`: `stage(sample=…, timestep=…, encoder_hidden_states=…, controlnet_cond=…,
  conditioning_scale=…, return_dict=False, …)`, controlnet_cond (B, 3, H, W) in [0, 1], gives the residuals of the
  UNet's skip connections, a list, and that of its middle block, each multiplied by the scale.
- `VaeStandIn`: the encoder `stage.encode(x, return_dict=True)`, x (B, 3, H, W) in [-1, 1], gives an output
  with `latent_dist`; the decoder `stage.decode(z, return_dict=True, generator=None)`, z (B, 4, h, w), gives
  one with `sample`, (B, 3, H, W) about [-1, 1], or a tuple of it.
- `SafetyCheckerStandIn`: `stage(images=…, clip_input=…)` gives (images, flags).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from typing_extensions import Self

from ..memory.planning import StageKey
from ..memory.residency import Residency
from .decoding import set_tiles
from .libraries import diffusers


class StandIn(torch.nn.Module):  # type: ignore[misc]
    """The part that all stand-ins share: a config, a dtype, a device, and one stage to borrow.

    Args:
        config: what diffusers reads as `model.config`; has attributes.
        dtype: in which the stage computes.
        device: on which it computes.
    """

    def __init__(
        self, residency: Residency, key: StageKey, config: Any, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__()
        self.config = config
        self._residency, self._key = residency, key
        self._dtype, self._device = dtype, device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    def to(self, *_args: Any, **_kwargs: Any) -> Self:
        """Stays as it is: where and in what precision a stage lives is for its loader to choose."""
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._residency.use(self._key) as stage:
            return stage(*args, **kwargs)


class TextEncoderStandIn(StandIn):
    """Stands for `text_encoder` and `text_encoder_2`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # For clip_skip, diffusers normalises a hidden layer itself and reaches into the model for it.
        self.text_model = SimpleNamespace(final_layer_norm=self._final_layer_norm)

    def _final_layer_norm(self, hidden: torch.Tensor) -> torch.Tensor:
        with self._residency.use(self._key) as stage:
            # CLIPTextModel lost its inner `text_model` in transformers 5; …WithProjection has it still.
            normalised: torch.Tensor = getattr(stage, "text_model", stage).final_layer_norm(hidden)
            return normalised


class UNetStandIn(StandIn):
    """Stands for `unet`.

    Args:
        controlled: key of the stage that takes the residuals of ControlNets, which may be another one.
    """

    def __init__(self, *args: Any, controlled: StageKey, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._controlled = controlled
        # The SDXL pipelines check the size of their time ids against this layer's.
        in_features = getattr(self.config, "projection_class_embeddings_input_dim", None)
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=in_features))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        is_controlled = kwargs.get("mid_block_additional_residual") is not None
        with self._residency.use(self._controlled if is_controlled else self._key) as stage:
            return stage(*args, **kwargs)


class ControlNetStandIn(StandIn):
    """Stands for one ControlNet."""


class ControlNetStandIns(diffusers.MultiControlNetModel):  # type: ignore[misc]
    """Stands for `controlnet`: any number of ControlNets, whose residuals are added up."""

    @property
    def dtype(self) -> torch.dtype:
        return self.nets[0].dtype

    @property
    def device(self) -> torch.device:
        return self.nets[0].device


class SafetyCheckerStandIn(StandIn):
    """Stands for `safety_checker`."""


class VaeStandIn(StandIn):
    """Stands for `vae`, and fronts two stages: text-to-image never loads the encoder.

    Args:
        key: of the decoder.
        encoder: key of the encoder.
        on_decoded: sees each picture, (B, 3, H, W) about [-1, 1], before diffusers clamps it; may raise.
    """

    def __init__(
        self, *args: Any, encoder: StageKey, on_decoded: Callable[[torch.Tensor], None], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._encoder = encoder
        self._on_decoded = on_decoded
        self._encoded: list[tuple[torch.Tensor, Any]] = []
        #: Whether the last picture was decoded in more than one tile.
        self.decoded_in_tiles = False

    def begin_job(self) -> None:
        """Forgets the pictures that the last job began from."""
        self._encoded.clear()

    # Both casts do nothing for Stable Diffusion. They are for SDXL, whose VAE overflows in half precision: it
    # is held in float32 beside half-precision latents.

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        # All images of a job begin from the same pictures, and the UNet would have to go for each of them.
        for known, encoded in self._encoded:
            if known.shape == x.shape and torch.equal(known, x):
                return encoded if return_dict else (encoded.latent_dist,)
        with self._residency.use(self._encoder) as stage:
            set_tiles(stage, self._residency.needs_tiles(self._encoder), x.shape[-2:], latent=False)
            encoded = stage.encode(x.to(self.dtype), return_dict=True)
        self._encoded.append((x.clone(), encoded))
        return encoded if return_dict else (encoded.latent_dist,)

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        with self._residency.use(self._key) as stage:
            in_tiles = self._residency.needs_tiles(self._key)
            self.decoded_in_tiles = set_tiles(stage, in_tiles, z.shape[-2:], latent=True)
            decoded = stage.decode(z.to(self.dtype), return_dict=return_dict, generator=generator)
        self._on_decoded(decoded[0])
        return decoded

"""Converted stages, called as diffusers calls its models: layouts, dtypes and batches are seen to here.

Pipelines hand over float32 tensors on the CPU; a runtime takes numpy arrays of the dtypes that the model declares.
What a converted model fixes (its batch, its sizes) is met by splitting and padding batches, never by changing sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from renderkiln.schema.errors import ModelLoadError

from ...runtimes.base import Array, Runtime, TensorInfo
from ...runtimes.naming import PROJECTION, kind_of
from ..libraries import diffusers
from .interface import RESIDUAL, VAE_ENCODERS, VECTORS

Tensors = Mapping[str, torch.Tensor]


def adapt(stage: str, class_name: str, runtime: Runtime) -> Any:
    """A runtime as the stage that `engine/stages.py` describes.

    Args:
        class_name: of the component in model_index.json.
    """
    kind = kind_of(stage)
    if kind in ("text_encoder", "text_encoder_2"):
        return TextEncoder(runtime, pooled_first=class_name == "CLIPTextModelWithProjection")
    adapters = {
        "unet": UNet,
        "control-unet": UNet,
        "controlnet": ControlNet,
        "vae_decoder": VaeDecoder,
        "vae_encoder": VaeEncoder,
        "safety_checker": SafetyChecker,
        PROJECTION: Projection,
    }
    if kind not in adapters:
        raise ModelLoadError(f"no stage of the kind {kind} is known")
    return adapters[kind](runtime)


class EncodedText(NamedTuple):
    """What diffusers reads of a text encoder's output: its first value, or a hidden layer."""

    #: (B, 77, C), or (B, C) where the class has a projection.
    first: torch.Tensor
    #: The last but one layer's (B, 77, C) at -2; deeper layers are not in a converted model.
    hidden_states: tuple[torch.Tensor, ...]


class TextEncoder:
    """Token ids (B, 77) to embeddings.

    Args:
        pooled_first: SDXL's second encoder: its pooled output is what diffusers takes for the first value.
    """

    def __init__(self, runtime: Runtime, *, pooled_first: bool) -> None:
        self._runtime, self._pooled_first = runtime, pooled_first

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> EncodedText:
        found = run(self._runtime, {"input_ids": input_ids}, len(input_ids))
        embeddings = found["hidden_embeds"] if "hidden_embeds" in found else found["last_hidden_state"]
        first = found["pooled_outputs"] if self._pooled_first and "hidden_embeds" in found else embeddings
        return EncodedText(first, (embeddings, embeddings))


class _Denoiser:
    """What UNets and ControlNets take alike."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def _run(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None,
        added_cond_kwargs: Tensors | None,
        others: Tensors,
    ) -> dict[str, torch.Tensor]:
        batch = len(sample)
        given = {
            "sample": sample,
            "timestep": torch.as_tensor(timestep).expand(batch),
            "encoder_hidden_states": self._text(encoder_hidden_states),
            **(added_cond_kwargs or {}),
            **others,
        }
        if timestep_cond is not None:
            given["timestep_cond"] = timestep_cond
        return run(self._runtime, given, batch)

    def _text(self, states: torch.Tensor) -> torch.Tensor:
        """(B, S, C); in Core ML's models as the Neural Engine likes it, (B, C, 1, S)."""
        is_turned = len(self._runtime.inputs["encoder_hidden_states"].shapes[0]) == 4
        return states.transpose(1, 2).unsqueeze(2) if is_turned else states


class UNet(_Denoiser):
    """Predicts noise; takes residuals where the model was converted for ControlNets, zeros if there are none."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._residuals = residual_names(runtime.inputs)

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: Tensors | None = None,
        down_block_additional_residuals: Any = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor]:
        others: dict[str, torch.Tensor] = {}
        if mid_block_additional_residual is not None:
            residuals = (*down_block_additional_residuals, mid_block_additional_residual)
            others = dict(zip(self._residuals, residuals, strict=True))
        elif self._residuals:
            others = self._no_residuals(sample)
        found = self._run(sample, timestep, encoder_hidden_states, timestep_cond, added_cond_kwargs, others)
        return (found["noise_pred"],)

    def _no_residuals(self, sample: torch.Tensor) -> dict[str, torch.Tensor]:
        size = list(self._runtime.inputs["sample"].shapes).index(self._fixed(sample))
        zeros = {}
        for name in self._residuals:
            shapes = self._runtime.inputs[name].shapes
            zeros[name] = torch.zeros(len(sample), *shapes[size if len(shapes) > 1 else 0][1:])
        return zeros

    def _fixed(self, sample: torch.Tensor) -> tuple[int, ...]:
        return (self._runtime.inputs["sample"].shapes[0][0], *sample.shape[1:])


class ControlNet(_Denoiser):
    """Makes a UNet's residuals from a picture."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self._residuals = residual_names(runtime.outputs)

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        timestep_cond: torch.Tensor | None = None,
        added_cond_kwargs: Tensors | None = None,
        **_: Any,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        others = {"controlnet_cond": controlnet_cond}
        found = self._run(sample, timestep, encoder_hidden_states, timestep_cond, added_cond_kwargs, others)
        scaled = [found[name] * conditioning_scale for name in self._residuals]
        return scaled[:-1], scaled[-1]


class VaeDecoder:
    """Latents (B, 4, h, w) to pictures (B, 3, H, W) about [-1, 1]."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        image = run(self._runtime, {"z": z}, len(z))["image"]
        return diffusers.models.autoencoders.vae.DecoderOutput(sample=image) if return_dict else (image,)


class VaeEncoder:
    """Pictures (B, 3, H, W) in [-1, 1] to the distribution of their latents."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        [name] = self._runtime.inputs
        moments = run(self._runtime, {name: x}, len(x))[VAE_ENCODERS[name]]
        latents = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution(moments)
        return diffusers.models.modeling_outputs.AutoencoderKLOutput(latent_dist=latents) if return_dict else (latents,)


class SafetyChecker:
    """Says which pictures are to be hidden."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __call__(self, images: torch.Tensor, clip_input: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
        pictures = torch.as_tensor(images).permute(0, 2, 3, 1)
        given = {"clip_input": clip_input, "images": pictures, "adjustment": torch.zeros(len(pictures))}
        flags = run(self._runtime, given, len(pictures))["has_nsfw_concepts"].flatten(1).amax(1) > 0.5
        return images * (~flags)[:, None, None, None], flags.tolist()


class Projection:
    """Vectors of the system's text encoder to what a UNet reads."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        _, self.tokens, self.width = runtime.inputs[VECTORS].shapes[0]

    def __call__(self, vectors: Array) -> torch.Tensor:
        """(n, E), any n, to (1, S, C) float32: zeros stand where vectors lack, as Apple has it; too many are cut off.

        Raises:
            ModelLoadError: the vectors are of another width than those that the projection was trained with.
        """
        if vectors.shape[1] != self.width:
            raise ModelLoadError(
                f"the model's multilingual projection takes vectors of {self.width} values, and this system's text "
                f"encoder gives {vectors.shape[1]}"
            )
        padded = np.zeros((1, self.tokens, self.width), np.float32)
        padded[0, : len(vectors)] = vectors[: self.tokens]
        found = self._runtime.predict({VECTORS: padded})["encoder_hidden_states"]
        return torch.from_numpy(found).squeeze(2).transpose(1, 2)


def residual_names(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """The names of residuals among a model's tensors, in the order of their numbers."""
    return sorted((name for name in tensors if name.startswith(RESIDUAL)), key=lambda name: int(name[len(RESIDUAL) :]))


def run(runtime: Runtime, given: Tensors, batch: int) -> dict[str, torch.Tensor]:
    """Runs a model of a fixed batch on tensors of any batch: as often as need be, the last time padded.

    Args:
        given: a tensor, (batch, …), for each input of the model.

    Returns:
        (batch, …) float32 tensors.
    """
    arrays = {name: _array(tensor, runtime.inputs.get(name)) for name, tensor in given.items()}
    fixed = _batch(runtime)
    parts: list[dict[str, Array]] = []
    for start in range(0, batch, fixed):
        rows = {name: array[start : start + fixed] for name, array in arrays.items()}
        short = fixed - min(fixed, batch - start)
        if short:
            rows = {name: np.concatenate([array, *[array[-1:]] * short]) for name, array in rows.items()}
        parts.append(runtime.predict(rows))
    return {name: _joined([part[name] for part in parts], batch) for name in parts[0]}


def _batch(runtime: Runtime) -> int:
    first = next(iter(runtime.inputs.values()))
    return first.shapes[0][0]


def _array(tensor: torch.Tensor, info: TensorInfo | None) -> Array:
    # A name that the model lacks goes on to `predict`, which knows how to complain.
    array: Array = tensor.detach().cpu().numpy()
    return np.ascontiguousarray(array if info is None else array.astype(info.dtype, copy=False))


def _joined(arrays: list[Array], batch: int) -> torch.Tensor:
    whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return torch.from_numpy(whole[:batch].astype(np.float32, copy=False))

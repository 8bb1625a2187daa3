"""The stages as torch modules that take and give tensors in the order, and in the shapes, of Apple's converter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from renderkiln.schema.errors import ConversionError

from .plan import PROJECTION, StagePlan


def make_stage(plan: StagePlan, module: Any, *, family: str, channels_first: bool) -> nn.Module:
    """A component's module as the stage of a plan: takes the plan's inputs in order, gives its outputs as a tuple.

    Args:
        channels_first: whether `rewrite_attention` has been here.
    """
    if plan.kind in ("text_encoder", "text_encoder_2"):
        return TextEncoderStage(module, hidden=family == "sdxl", pooled="pooled_outputs" in plan.outputs).eval()
    if plan.kind in ("unet", "control-unet", "controlnet"):
        names = tuple(tensor.name for tensor in plan.inputs)
        kind = ControlNetStage if plan.kind == "controlnet" else UNetStage
        return kind(module, names, channels_first).eval()
    if plan.kind == "vae_decoder":
        return VaeDecoderStage(module).eval()
    if plan.kind == "vae_encoder":
        return VaeEncoderStage(module).eval()
    if plan.kind == "safety_checker":
        return SafetyCheckerStage(module).eval()
    if plan.kind == PROJECTION:
        return ProjectionStage(module).eval()
    raise ConversionError(f"no stage of kind {plan.kind}")


class TextEncoderStage(nn.Module):  # type: ignore[misc]
    """(1, 77) int32 to the last hidden state (1, 77, C), or for SDXL the last but one.

    Args:
        pooled: gives the pooled output (1, C) besides.
    """

    def __init__(self, model: Any, *, hidden: bool, pooled: bool = True) -> None:
        super().__init__()
        self.model, self.hidden, self.pooled = model, hidden, pooled

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(input_ids, output_hidden_states=self.hidden)
        states = output.hidden_states[-2] if self.hidden else output.last_hidden_state
        if not self.pooled:
            return (states,)
        return states, (output.text_embeds if "text_embeds" in output else output.pooler_output)


class _Denoiser(nn.Module):  # type: ignore[misc]
    """What UNets and ControlNets share: arguments by position, and text embeddings in the format's layout.

    Core ML's is (B, C, 1, S), which a model with rewritten attention takes as it is; Core AI's is diffusers' own.
    """

    def __init__(self, model: Any, names: tuple[str, ...], channels_first: bool) -> None:
        super().__init__()
        self.model, self.names, self.channels_first = model, names, channels_first

    def _is_turned(self, text: torch.Tensor) -> bool:
        return text.dim() == 4 and not self.channels_first

    def _arguments(self, tensors: tuple[torch.Tensor, ...]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        given = dict(zip(self.names, tensors, strict=True))
        text = given["encoder_hidden_states"]
        arguments: dict[str, Any] = {
            "sample": given["sample"],
            "timestep": given["timestep"],
            "encoder_hidden_states": text.squeeze(2).transpose(1, 2) if self._is_turned(text) else text,
            "return_dict": False,
        }
        if "time_ids" in given:
            added = {"time_ids": given["time_ids"], "text_embeds": given["text_embeds"]}
            arguments["added_cond_kwargs"] = added
        if "timestep_cond" in given:
            arguments["timestep_cond"] = given["timestep_cond"]
        return given, arguments


class UNetStage(_Denoiser):
    """Latents, time and text to a noise prediction; with `additional_residual_…` inputs also a ControlNet's."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        given, arguments = self._arguments(tensors)
        residuals = [given[name] for name in self.names if name.startswith("additional_residual_")]
        if residuals:
            arguments["down_block_additional_residuals"] = tuple(residuals[:-1])
            arguments["mid_block_additional_residual"] = residuals[-1]
        (noise,) = self.model(**arguments)
        return (noise,)


class ControlNetStage(_Denoiser):
    """The UNet's inputs and a picture to the residuals that the UNet adds."""

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given, arguments = self._arguments(tensors)
        down, middle = self.model(controlnet_cond=given["controlnet_cond"], **arguments)
        return (*down, middle)


class VaeDecoderStage(nn.Module):  # type: ignore[misc]
    """Latents, divided by the scaling factor already, to a picture in [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z)),)


class VaeEncoderStage(nn.Module):  # type: ignore[misc]
    """A picture in [-1, 1] to means and log-variances of latents, not yet multiplied by the scaling factor."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.quant_conv, self.encoder = vae.quant_conv, vae.encoder

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        moments = self.encoder(x)
        return (moments if self.quant_conv is None else self.quant_conv(moments),)


class SafetyCheckerStage(nn.Module):  # type: ignore[misc]
    """A picture for CLIP and pictures (B, H, W, 3) to the pictures, black where flagged, the flags, and the scores.

    diffusers' module decides in Python; this does the same on tensors. `adjustment` is added to the special scores.
    """

    def __init__(self, checker: Any) -> None:
        super().__init__()
        self.checker = checker

    def forward(
        self, clip_input: torch.Tensor, images: torch.Tensor, adjustment: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        checker = self.checker
        embedding = _unit(checker.visual_projection(checker.vision_model(clip_input)[1]))
        special = embedding @ _unit(checker.special_care_embeds).T - checker.special_care_embeds_weights + adjustment
        care = (special > 0).float().amax(dim=1, keepdim=True)
        scores = embedding @ _unit(checker.concept_embeds).T - checker.concept_embeds_weights + 0.01 * care
        flagged = (scores > 0).float().amax(dim=1)[:, None, None, None]
        return images * (1 - flagged), flagged, scores


class ProjectionStage(nn.Module):  # type: ignore[misc]
    """Apple's multilingual embeddings (1, S, E) to the UNet's (1, C, 1, S)."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, embeddings: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.layer(embeddings).transpose(1, 2).unsqueeze(2),)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(vectors, dim=-1)

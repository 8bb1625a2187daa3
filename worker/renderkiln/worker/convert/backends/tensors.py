"""What backends say of a stage's tensors, and the tensors that they trace it with."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...runtimes.base import TensorInfo

#: What each input and output is, for whoever opens a package in Xcode.
DESCRIPTIONS: Mapping[str, str] = {
    "input_ids": "Token ids of a prompt",
    "last_hidden_state": "The text encoder's last hidden state",
    "hidden_embeds": "The text encoder's last hidden state but one",
    "pooled_outputs": "The embedding of the whole prompt",
    "sample": "Latents with noise, scaled as the scheduler wants them",
    "timestep": "The scheduler's timestep, once for each of the batch",
    "encoder_hidden_states": "The prompt's embeddings",
    "time_ids": "Original size, crop and target size, heights before widths",
    "text_embeds": "The second text encoder's pooled output",
    "nlcontextualembeddings_output": "What NLContextualEmbedding gives for a prompt",
    "timestep_cond": "The embedding of the guidance scale",
    "controlnet_cond": "The picture that guides, in [0, 1]",
    "noise_pred": "The noise, or velocity, that the model sees in the sample",
    "z": "Latents, divided by the VAE's scaling factor",
    "image": "The picture, in [-1, 1]",
    "x": "A picture, in [-1, 1]",
    "latent_params": "Means and log-variances of the latents, before scaling",
    "latent": "Means and log-variances of the latents, before scaling",
    "clip_input": "The picture, resized and normalised for CLIP",
    "images": "The pictures, channels last",
    "adjustment": "Added to the special concepts' scores",
    "filtered_images": "The pictures, black where something was flagged",
    "has_nsfw_concepts": "1 where something was flagged",
    "concept_scores": "Scores of the concepts; above zero is flagged",
}
#: What each `additional_residual_…` is.
RESIDUAL = "What a ControlNet adds to the UNet"


def example(tensor: TensorInfo, number: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor to trace with: of a stage's size of that number, floats of that dtype, token ids int32."""
    shape = tensor.shapes[number if len(tensor.shapes) > 1 else 0]
    if tensor.name == "input_ids":
        return torch.zeros(shape, dtype=torch.int32)
    return torch.full(shape, 500.0, dtype=dtype) if tensor.name == "timestep" else torch.rand(shape, dtype=dtype)

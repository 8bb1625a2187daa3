"""Encodes a job's prompts, once for all its images, and says what of them will not be heeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from renderkiln.schema.spec import RenderSpec


@dataclass(frozen=True)
class EncodedPrompts:
    """Arguments that stand for `prompt` and `negative_prompt` in a call of the pipeline."""

    #: prompt_embeds, negative_prompt_embeds and, for SDXL, their pooled companions: (1, …) tensors, or None.
    arguments: dict[str, Any]
    #: What a person should know that only encoding shows.
    notes: tuple[str, ...] = ()


#: Gives a text's embeddings, (1, S, C), and how many of the S tokens it filled.
Embed = Callable[[str], tuple[torch.Tensor, int]]


def encode(pipeline: Any, spec: RenderSpec, embed: Embed | None = None) -> EncodedPrompts:
    """Runs the text encoder (or both of SDXL's), exactly as the pipeline itself would.

    Args:
        embed: takes the text encoder's place.
    """
    guided = _is_guided(pipeline, spec)
    if embed is not None:
        return _embedded(spec, embed, guided)
    encoded = pipeline.encode_prompt(
        spec.prompt,
        device=pipeline._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=guided,
        # Not "": SDXL zeroes the embedding of a negative prompt that was not given.
        negative_prompt=spec.negative_prompt or None,
        clip_skip=spec.clip_skip,
    )
    names = (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    )
    return EncodedPrompts(dict(zip(names, encoded, strict=False)))


def notes(pipeline: Any, spec: RenderSpec) -> tuple[str, ...]:
    """What a person should know about these prompts, in plain sentences; usually nothing."""
    is_own = spec.text_encoder == "model"  # how much another one reads shows when it has read
    said = [_cut_off(pipeline.tokenizer, "prompt", spec.prompt)] if is_own else []
    if spec.negative_prompt:
        if not _is_guided(pipeline, spec):
            said.append("The negative prompt has no effect: guidance is off.")
        elif is_own:
            said.append(_cut_off(pipeline.tokenizer, "negative prompt", spec.negative_prompt))
    return tuple(note for note in said if note)


def _embedded(spec: RenderSpec, embed: Embed, guided: bool) -> EncodedPrompts:
    texts = {"prompt": spec.prompt} | ({"negative_prompt": spec.negative_prompt} if guided else {})
    arguments: dict[str, Any] = {"prompt_embeds": None, "negative_prompt_embeds": None}
    said = []
    for name, text in texts.items():
        embeddings, filled = embed(text)
        arguments[f"{name}_embeds"] = embeddings
        if filled >= embeddings.shape[1]:
            what = name.replace("_", " ")
            said.append(f"The {what} fills all {filled} tokens that the model reads; what goes beyond is not read.")
    return EncodedPrompts(arguments, tuple(said))


def _is_guided(pipeline: Any, spec: RenderSpec) -> bool:
    # As diffusers decides it. A UNet with time_cond_proj_dim (an LCM) is told the scale as an embedding.
    return spec.guidance_scale > 1 and pipeline.unet.config.time_cond_proj_dim is None


def _cut_off(tokenizer: Any, name: str, text: str) -> str:
    ids = tokenizer(text).input_ids
    limit = tokenizer.model_max_length
    if len(ids) <= limit:
        return ""
    lost = tokenizer.decode(ids[limit - 1 : -1])
    shown = lost if len(lost) <= 80 else lost[:79] + "…"
    return f"The {name} has {len(ids) - 2} tokens; the model reads the first {limit - 2}. Not read: {shown!r}."

"""Encodes prompts, each text once, and says what of them will not be heeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from renderkiln.schema.spec import RenderSpec

from .embeddings import EmbeddingCache, EmbeddingKey, Tensors


@dataclass(frozen=True)
class EncodedPrompts:
    """Arguments that stand for `prompt` and `negative_prompt` in a call of the pipeline."""

    #: prompt_embeds, negative_prompt_embeds and, for SDXL, their pooled companions: (1, …) tensors, or None.
    arguments: dict[str, Any]
    #: What a person should know that only encoding shows.
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.arguments.values() if each is not None)


#: Gives a text's embeddings, (1, S, C), and how many of the S tokens it filled.
Embed = Callable[[str], tuple[torch.Tensor, int]]


class Prompts:
    """The prompts of one model's specs, encoded exactly as its pipeline would, and kept.

    Args:
        encoder: see `EmbeddingKey`.
    """

    def __init__(self, pipeline: Any, encoder: str, cache: EmbeddingCache) -> None:
        self._pipeline, self._encoder, self._cache = pipeline, encoder, cache

    def are_known(self, spec: RenderSpec) -> bool:
        """Whether a spec needs no text encoder."""
        return all(self._cache.get(key) is not None for key in self._keys(spec) if key is not None)

    def encode(self, spec: RenderSpec) -> EncodedPrompts:
        """Runs the text encoder (or both of SDXL's) for what is not known yet."""
        positive, negative = self._keys(spec)
        assert positive is not None
        tensors = self._known(positive, lambda: self._encode(spec, ()))
        arguments = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), tensors, strict=False))
        arguments["negative_prompt_embeds"] = None
        if negative is not None:
            tensors = self._known(negative, lambda: self._encode(spec, tensors))
            names = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
            arguments |= dict(zip(names, tensors, strict=False))
        return EncodedPrompts(arguments)

    def _keys(self, spec: RenderSpec) -> tuple[EmbeddingKey | None, EmbeddingKey | None]:
        positive = EmbeddingKey(self._encoder, "prompt", spec.prompt, spec.clip_skip)
        if not is_guided(self._pipeline, spec):
            return positive, None
        # clip_skip has no say in it, here as in diffusers; but SDXL's zeros take their shape from the prompt's.
        return positive, EmbeddingKey(self._encoder, "negative_prompt", spec.negative_prompt, None)

    def _known(self, key: EmbeddingKey, encode: Callable[[], Tensors]) -> Tensors:
        found = self._cache.get(key)
        if found is None:
            found = encode()
            self._cache.put(key, found)
        return found

    def _encode(self, spec: RenderSpec, positive: Tensors) -> Tensors:
        """The prompt's tensors; or the negative prompt's, where those are given: diffusers leaves out what is."""
        given = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), positive, strict=False))
        encoded = self._pipeline.encode_prompt(
            spec.prompt,
            device=self._pipeline._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=bool(positive),
            # Not "": SDXL zeroes the embedding of a negative prompt that was not given.
            negative_prompt=(spec.negative_prompt or None) if positive else None,
            clip_skip=spec.clip_skip,
            **given,
        )
        # Of prompt, negative prompt and, for SDXL, the pooled ones of both.
        return tuple(each for each in encoded[1 if positive else 0 :: 2] if each is not None)


def encode_with(embed: Embed, pipeline: Any, spec: RenderSpec) -> EncodedPrompts:
    """The same by something that takes the text encoder's place."""
    texts = {"prompt": spec.prompt} | ({"negative_prompt": spec.negative_prompt} if is_guided(pipeline, spec) else {})
    arguments: dict[str, Any] = {"prompt_embeds": None, "negative_prompt_embeds": None}
    said = []
    for name, text in texts.items():
        embeddings, filled = embed(text)
        arguments[f"{name}_embeds"] = embeddings
        if filled >= embeddings.shape[1]:
            what = name.replace("_", " ")
            said.append(f"The {what} fills all {filled} tokens that the model reads; what goes beyond is not read.")
    return EncodedPrompts(arguments, tuple(said))


def notes(pipeline: Any, spec: RenderSpec) -> tuple[str, ...]:
    """What a person should know about these prompts, in plain sentences; usually nothing."""
    is_own = spec.text_encoder == "model"  # how much another one reads shows when it has read
    said = [_cut_off(pipeline.tokenizer, "prompt", spec.prompt)] if is_own else []
    if spec.negative_prompt:
        if not is_guided(pipeline, spec):
            said.append("The negative prompt has no effect: guidance is off.")
        elif is_own:
            said.append(_cut_off(pipeline.tokenizer, "negative prompt", spec.negative_prompt))
    return tuple(note for note in said if note)


def is_guided(pipeline: Any, spec: RenderSpec) -> bool:
    """Whether the negative prompt has a say, as diffusers decides it."""
    # A UNet with time_cond_proj_dim (an LCM) is told the scale as an embedding.
    return spec.guidance_scale > 1 and pipeline.unet.config.time_cond_proj_dim is None


def _cut_off(tokenizer: Any, name: str, text: str) -> str:
    ids = tokenizer(text).input_ids
    limit = tokenizer.model_max_length
    if len(ids) <= limit:
        return ""
    lost = tokenizer.decode(ids[limit - 1 : -1])
    shown = lost if len(lost) <= 80 else lost[:79] + "…"
    return f"The {name} has {len(ids) - 2} tokens; the model reads the first {limit - 2}. Not read: {shown!r}."

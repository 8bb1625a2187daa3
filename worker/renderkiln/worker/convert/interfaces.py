"""What each kind of stage takes and gives: Apple's names and types, which differ between Core ML and Core AI.

Core ML's are those of Apple's converter for it (ml-stable-diffusion); Core AI's those of `coreai.diffusion.export`
(apple/coreai-models), and where that has no such stage, Core ML's names with the layout that it would give them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from renderkiln.schema.errors import UnsupportedModelError

from ..runtimes.base import DType, Shape, TensorInfo
from .facts import ModelFacts
from .options import ConvertOptions

#: How many vectors of Apple's NLContextualEmbedding its Swift package hands on: zeros follow where there are fewer.
MULTILINGUAL_TOKENS = 256

Takes = list[TensorInfo]
Gives = list[str]


def residual_shapes(config: Mapping[str, Any], batch: int, height: int, width: int) -> list[Shape]:
    """What a ControlNet adds to a UNet of that config: the skip connections in order, and the middle block's output."""
    channels: Sequence[int] = config["block_out_channels"]
    per_block = config.get("layers_per_block", 2)
    layers = [per_block] * len(channels) if isinstance(per_block, int) else list(per_block)
    shapes: list[Shape] = [(batch, channels[0], height, width)]
    for index, (count, layer_count) in enumerate(zip(channels, layers, strict=True)):
        shapes += [(batch, count, height, width)] * layer_count
        if index < len(channels) - 1:
            height, width = (height + 1) // 2, (width + 1) // 2
            shapes.append((batch, count, height, width))
    return [*shapes, (batch, channels[-1], height, width)]


class Interfaces:
    """What the stages of one conversion take and give.

    Args:
        sizes: width and height in pixels, the default size first.
        scale: pixels of the picture for each of the latents', in each direction.
    """

    def __init__(
        self, facts: ModelFacts, options: ConvertOptions, sizes: Sequence[tuple[int, int]], scale: int
    ) -> None:
        self._facts, self._sizes = facts, sizes
        self._is_coreai = options.format == "coreai"
        self._float: DType = options.precision
        self._batch = 1 if options.unet_batch_one else 2
        self._latents = [(height // scale, width // scale) for width, height in sizes]

    def of(self, kind: str, config: Mapping[str, Any]) -> tuple[Takes, Gives]:
        """What a stage of a kind, whose component has a config, takes, and the names of what it gives.

        Raises:
            UnsupportedModelError: it takes what cannot be converted.
        """
        makers: Mapping[str, Callable[[Mapping[str, Any]], tuple[Takes, Gives]]] = {
            "text_encoder": self._text_encoder,
            "text_encoder_2": self._text_encoder,
            "unet": self._unet,
            "control-unet": self._control_unet,
            "controlnet": self._controlnet,
            "vae_decoder": self._vae_decoder,
            "vae_encoder": self._vae_encoder,
            "safety_checker": self._safety_checker,
        }
        return makers[kind](config)

    def projection(self, width: int) -> tuple[Takes, Gives]:
        """What a multilingual projection of vectors of that width takes and gives."""
        shape = (1, MULTILINGUAL_TOKENS, width)
        return [self._tensor("nlcontextualembeddings_output", [shape], "float32")], ["encoder_hidden_states"]

    def needs_float32(self, kind: str, config: Mapping[str, Any]) -> bool:
        """Whether a stage computes in float32 throughout, because that was asked for or because it must."""
        return self._float == "float32" or (kind.startswith("vae") and self._vae_needs_float32(config))

    def _tensor(self, name: str, shapes: Sequence[Shape], dtype: DType | None = None) -> TensorInfo:
        return TensorInfo(name=name, dtype=dtype or self._float, shapes=tuple(dict.fromkeys(shapes)))

    def _text_encoder(self, config: Mapping[str, Any]) -> tuple[Takes, Gives]:
        dtype: DType = "int32" if self._is_coreai else "float32"
        tokens = self._tensor("input_ids", [(1, config.get("max_position_embeddings", 77))], dtype)
        if self._facts.family == "sdxl":
            return [tokens], ["hidden_embeds", "pooled_outputs"]
        return [tokens], ["last_hidden_state"] if self._is_coreai else ["last_hidden_state", "pooled_outputs"]

    def _unet(self, config: Mapping[str, Any]) -> tuple[Takes, Gives]:
        batch = self._batch
        width = config.get("cross_attention_dim", 1280)
        if not isinstance(width, int):
            raise UnsupportedModelError(
                f"{self._facts.name}: cross_attention_dim is {width!r}, which cannot be converted"
            )
        inputs = [
            self._tensor("sample", [(batch, config.get("in_channels", 4), *size) for size in self._latents]),
            self._tensor("timestep", [(batch,)]),
            self._tensor("encoder_hidden_states", [self._text_shape(width)]),
        ]
        if config.get("addition_embed_type") == "text_time":
            embeds = self._facts.configs["text_encoder_2"]["projection_dim"]
            numbers = (config["projection_class_embeddings_input_dim"] - embeds) // config["addition_time_embed_dim"]
            inputs += [self._tensor("time_ids", [(batch, numbers)]), self._tensor("text_embeds", [(batch, embeds)])]
        if config.get("time_cond_proj_dim") is not None:
            # A consistency model is told the guidance scale as an embedding; Apple's converter drops that layer.
            inputs.append(self._tensor("timestep_cond", [(batch, config["time_cond_proj_dim"])]))
        return inputs, ["noise_pred"]

    def _control_unet(self, config: Mapping[str, Any]) -> tuple[Takes, Gives]:
        inputs, outputs = self._unet(config)
        residuals = [self._tensor(f"additional_residual_{n}", each) for n, each in enumerate(self._residuals(config))]
        return inputs + residuals, outputs

    def _controlnet(self, config: Mapping[str, Any]) -> tuple[Takes, Gives]:
        inputs, _ = self._unet(config)
        channels = config.get("conditioning_channels", 3)
        shapes = [(self._batch, channels, height, width) for width, height in self._sizes]
        outputs = [f"additional_residual_{number}" for number in range(len(self._residuals(config)))]
        return [*inputs, self._tensor("controlnet_cond", shapes)], outputs

    def _text_shape(self, width: int) -> Shape:
        """Core ML's is as the Neural Engine likes it, channels before tokens."""
        tokens = self._text_tokens()
        return (self._batch, tokens, width) if self._is_coreai else (self._batch, width, 1, tokens)

    def _text_tokens(self) -> int:
        """What the UNet reads; one made for the system's text encoder reads that one's vectors alone."""
        if self._facts.projection is not None:
            return MULTILINGUAL_TOKENS
        text = self._facts.configs.get("text_encoder") or self._facts.configs["text_encoder_2"]
        tokens: int = text.get("max_position_embeddings", 77)
        return tokens

    def _residuals(self, config: Mapping[str, Any]) -> list[list[Shape]]:
        by_size = [residual_shapes(config, self._batch, *size) for size in self._latents]
        return [list(shapes) for shapes in zip(*by_size, strict=True)]

    def _vae_decoder(self, config: Mapping[str, Any]) -> tuple[Takes, Gives]:
        channels = config.get("latent_channels", 4)
        return [self._tensor("z", [(1, channels, *size) for size in self._latents], self._vae_dtype(config))], ["image"]

    def _vae_encoder(self, config: Mapping[str, Any]) -> tuple[Takes, Gives]:
        channels = config.get("in_channels", 3)
        shapes = [(1, channels, height, width) for width, height in self._sizes]
        takes, gives = ("image", "latent_params") if self._is_coreai else ("x", "latent")
        return [self._tensor(takes, shapes, self._vae_dtype(config))], [gives]

    def _safety_checker(self, config: Mapping[str, Any]) -> tuple[Takes, Gives]:
        side = config["vision_config"].get("image_size", 224)
        inputs = [
            self._tensor("clip_input", [(1, 3, side, side)]),
            self._tensor("images", [(1, height, width, 3) for width, height in self._sizes]),
            self._tensor("adjustment", [(1,)]),
        ]
        return inputs, ["filtered_images", "has_nsfw_concepts", "concept_scores"]

    def _vae_dtype(self, config: Mapping[str, Any]) -> DType:
        return "float32" if self._vae_needs_float32(config) else self._float

    def _vae_needs_float32(self, config: Mapping[str, Any]) -> bool:
        # SDXL's own VAE overflows in float16. Whoever brings another one has taken care of that.
        return self._facts.family == "sdxl" and not self._facts.custom_vae and bool(config.get("force_upcast", True))

"""Plans a conversion: from what a model is and what was asked for, to stages with their files, tensors and digests.

Pure: reads no file and loads no library of models, so that all of it can be tested with made-up models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from renderkiln.schema.errors import BadInputError, UnsupportedModelError

from ..runtimes.base import DType, Shape, TensorInfo
from ..runtimes.naming import PROJECTION as PROJECTION
from ..runtimes.naming import controlnet_stage, safe_name
from .facts import ControlNetFacts, ModelFacts, ProjectionFacts, Record
from .options import COMPRESSED, STAGES, Attention, ConvertOptions, Target

#: How many vectors of Apple's NLContextualEmbedding its Swift package hands on: zeros follow where there are fewer.
MULTILINGUAL_TOKENS = 256
#: Changed whenever the same settings would give another package than before.
CONVERTER = 1


class StagePlan(Record):
    """One stage to convert."""

    #: text_encoder, unet, …; a ControlNet's is `controlnet-NAME`.
    stage: str
    #: What kind of stage it is: one of `STAGES`.
    kind: str
    #: The folder of its weights in the model: text_encoder, unet, vae …; for a ControlNet its number.
    component: str
    #: The packages to write: one, or two chunks.
    files: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    #: Computes in float32 throughout.
    float32: bool = False
    attention: Attention | None = None
    nbits: int | None = None
    recipe: bool = False
    target: Target
    settings_digest: str


class Plan(Record):
    """All stages, in the order in which they are converted."""

    stages: tuple[StagePlan, ...]
    #: Width and height in pixels, the default size first.
    sizes: tuple[tuple[int, int], ...]


def make_plan(facts: ModelFacts, options: ConvertOptions, versions: Mapping[str, str]) -> Plan:
    """The stages to convert.

    Args:
        versions: of the libraries that decide what comes out; they enter the digests.

    Raises:
        BadInputError: a stage was asked for that the model does not have, a size does not fit it, two ControlNets
            have one name, or a recipe is for no stage.
        UnsupportedModelError: the model is of a kind that cannot be converted.
    """
    _check_kind(facts)
    scale = 2 ** (len(facts.configs["vae"]["block_out_channels"]) - 1)
    sizes = options.sizes or (_native_size(facts, scale),)
    _check_sizes(sizes, scale, facts, several=len(sizes) > 1)
    builder = _Builder(facts, options, versions, sizes, scale)
    stages = tuple(builder.stages())
    _check_names(stages, facts)
    if options.target != "macOS15":
        for stage in stages:
            flexible = [tensor.name for tensor in stage.inputs if len(tensor.shapes) > 1]
            if len(flexible) > 1:
                raise BadInputError(
                    f"--sizes: {stage.stage} has {len(flexible)} inputs that change with the size, which Core ML takes "
                    "from macOS 15 on; add --deployment-target macOS15, or give one size"
                )
    return Plan(stages=stages, sizes=sizes)


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


def _check_kind(facts: ModelFacts) -> None:
    unet = facts.configs["unet"]
    for field in ("encoder_hid_dim", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds"):
        if unet.get(field) is not None:
            raise UnsupportedModelError(
                f"{facts.name}: its UNet has {field} {unet[field]!r}, which cannot be converted"
            )
    if unet.get("addition_embed_type") not in (None, "text_time"):
        raise UnsupportedModelError(
            f"{facts.name}: its UNet takes {unet['addition_embed_type']!r}, which cannot be converted"
        )


def _check_names(stages: Sequence[StagePlan], facts: ModelFacts) -> None:
    names = [stage.stage for stage in stages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInputError(f"--controlnet: two of them would be called {twice}; give one of the folders another name")
    used = {_recipe_for(stage.kind, facts) for stage in stages}
    idle = next((name for name in facts.recipes if name not in used), None)
    if idle is not None:
        raise BadInputError(f"--recipe: there is one for {idle}, which is not converted; there are {', '.join(names)}")


def _recipe_for(kind: str, facts: ModelFacts) -> str:
    # A recipe for `unet` is meant for whichever UNet is converted: they hold the same weights.
    return "unet" if kind == "control-unet" and kind not in facts.recipes else kind


def _native_size(facts: ModelFacts, scale: int) -> tuple[int, int]:
    size = facts.configs["unet"].get("sample_size")
    if size is None:
        raise BadInputError(f"{facts.name} does not say which size it was made for; give --width and --height")
    height, width = (size, size) if isinstance(size, int) else size
    return width * scale, height * scale


def _check_sizes(sizes: Sequence[tuple[int, int]], scale: int, facts: ModelFacts, *, several: bool) -> None:
    # Where a UNet's depth does not divide a size, diffusers resizes by numbers that are fixed when it is traced.
    step = scale * 2 ** (len(facts.configs["unet"]["block_out_channels"]) - 1) if several else scale
    step = max(8, step)  # diffusers' pipelines take pixels in eights; both are powers of two
    for width, height in sizes:
        if min(width, height) < step or width % step or height % step:
            raise BadInputError(f"size {width}x{height}: {facts.name} needs multiples of {step}")


class _Builder:
    def __init__(
        self,
        facts: ModelFacts,
        options: ConvertOptions,
        versions: Mapping[str, str],
        sizes: Sequence[tuple[int, int]],
        scale: int,
    ) -> None:
        self.facts, self.options, self.versions = facts, options, dict(versions)
        self.batch = 1 if options.unet_batch_one else 2
        self.sizes = sizes
        self.latents = [(height // scale, width // scale) for width, height in sizes]
        self.prefix = f"Stable_Diffusion_version_{safe_name(facts.name)}"

    def stages(self) -> Iterator[StagePlan]:
        there = [kind for kind in STAGES if self._is_there(kind)]
        asked = set(self.options.stages)
        if "text_encoders" in asked:
            asked = asked - {"text_encoders"} | {kind for kind in there if kind.startswith("text_encoder")}
        for kind in asked:
            if kind not in there:
                raise BadInputError(f"--stages: {self._why_not(kind)}; there are {', '.join(there)}")
        default = [kind for kind in there if kind != ("unet" if self.facts.controlnets else "control-unet")]
        for kind in [kind for kind in there if kind in (asked or default)]:
            if kind == "controlnet":
                for index, controlnet in enumerate(self.facts.controlnets):
                    yield self._controlnet(index, controlnet)
            else:
                yield self._stage(kind)
        if self.facts.projection is not None:
            yield self._projection(self.facts.projection)

    def _projection(self, projection: ProjectionFacts) -> StagePlan:
        width = self.facts.configs["unet"].get("cross_attention_dim")
        if self.facts.family == "sdxl":
            raise BadInputError(
                f"--multilingual-projection: {self.facts.name} is an SDXL model, which wants a pooled embedding besides"
            )
        if projection.outputs != width:
            raise BadInputError(
                f"--multilingual-projection gives {projection.outputs} channels, and {self.facts.name} takes {width}"
            )
        shape = (1, MULTILINGUAL_TOKENS, projection.inputs)
        return self._finish(
            stage=PROJECTION,
            kind=PROJECTION,
            component=PROJECTION,
            files=("MultilingualTextEncoderProjection.mlpackage",),
            inputs=(self._tensor("nlcontextualembeddings_output", [shape], "float32"),),
            outputs=("encoder_hidden_states",),
            weights=projection.weights,
            config={},
            # The embeddings that it takes come from a framework of macOS 14.
            target="macOS14" if self.options.target == "macOS13" else self.options.target,
        )

    def _is_there(self, kind: str) -> bool:
        if kind == "controlnet":
            return bool(self.facts.controlnets)
        if kind == "safety_checker" and self.facts.family == "sdxl":
            return False
        return _component(kind) in self.facts.configs

    def _why_not(self, kind: str) -> str:
        if kind == "controlnet":
            return "controlnet needs --controlnet MODEL"
        return f"{self.facts.name} has no {kind}"

    def _stage(self, kind: str) -> StagePlan:
        component = _component(kind)
        config = self.facts.configs[component]
        makers = {
            "text_encoder": self._text_encoder,
            "text_encoder_2": self._text_encoder,
            "unet": self._unet,
            "control-unet": self._unet,
            "vae_decoder": self._vae_decoder,
            "vae_encoder": self._vae_encoder,
            "safety_checker": self._safety_checker,
        }
        inputs, outputs = makers[kind](config)
        if kind == "control-unet":
            inputs += [
                self._tensor(f"additional_residual_{number}", shapes)
                for number, shapes in enumerate(self._residuals(config))
            ]
        has_attention = kind in ("unet", "control-unet")
        name = f"{self.prefix}_{kind}"
        chunks = ("_chunk1", "_chunk2") if has_attention and self.options.chunk_unet else ("",)
        return self._finish(
            stage=kind,
            kind=kind,
            component=component,
            files=tuple(f"{name}{chunk}.mlpackage" for chunk in chunks),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            float32=component == "vae" and self._float32_vae(config),
            attention=self.options.attention if has_attention else None,
            weights=self.facts.weights[component],
            config=config,
        )

    def _controlnet(self, index: int, controlnet: ControlNetFacts) -> StagePlan:
        config = controlnet.config
        unet = self.facts.configs["unet"]
        for field in ("cross_attention_dim", "block_out_channels", "in_channels"):
            if _plain(config.get(field)) != _plain(unet.get(field)) and field in config and field in unet:
                raise BadInputError(
                    f"--controlnet {controlnet.name}: its {field} is {config[field]}, and that of {self.facts.name} is "
                    f"{unet[field]}; it was made for another kind of model"
                )
        inputs, _ = self._unet(config)
        channels = config.get("conditioning_channels", 3)
        inputs.append(
            self._tensor("controlnet_cond", [(self.batch, channels, height, width) for width, height in self.sizes])
        )
        name = safe_name(controlnet.name)
        return self._finish(
            stage=controlnet_stage(controlnet.name),
            kind="controlnet",
            component=str(index),
            files=(f"ControlNet_{name}.mlpackage",),
            inputs=tuple(inputs),
            outputs=tuple(f"additional_residual_{number}" for number in range(len(self._residuals(config)))),
            float32=False,
            attention=self.options.attention,
            weights=controlnet.weights,
            config=config,
        )

    def _finish(self, *, weights: str, config: Mapping[str, Any], **fields: Any) -> StagePlan:
        kind: str = fields["kind"]
        compressed = kind in COMPRESSED
        recipe = self.facts.recipes.get(_recipe_for(kind, self.facts))
        nbits = self.options.nbits if compressed and recipe is None else None
        takes_loras = kind in ("text_encoder", "text_encoder_2", "unet", "control-unet")
        fields.setdefault("target", self.options.target)
        plan = StagePlan(**fields, nbits=nbits, recipe=recipe is not None, settings_digest="")
        settings = plan.model_dump(mode="json", exclude={"settings_digest"}) | {
            "model": self.facts.name,
            "revision": self.facts.revision,
            "weights": weights,
            "config": config,
            "loras": [
                [digest, lora.weight]
                for digest, lora in zip(self.facts.loras, self.options.loras, strict=True)
                if takes_loras
            ],
            "recipe": recipe,
            "versions": self.versions,
            "converter": CONVERTER,
        }
        return plan.model_copy(update={"settings_digest": _digest(settings)})

    def _tensor(self, name: str, shapes: Sequence[Shape], dtype: DType = "float16") -> TensorInfo:
        return TensorInfo(name=name, dtype=dtype, shapes=tuple(dict.fromkeys(shapes)))

    def _text_encoder(self, config: Mapping[str, Any]) -> tuple[list[TensorInfo], list[str]]:
        tokens = self._tensor("input_ids", [(1, config.get("max_position_embeddings", 77))], "float32")
        first = "hidden_embeds" if self.facts.family == "sdxl" else "last_hidden_state"
        return [tokens], [first, "pooled_outputs"]

    def _unet(self, config: Mapping[str, Any]) -> tuple[list[TensorInfo], list[str]]:
        batch = self.batch
        width = config.get("cross_attention_dim", 1280)
        if not isinstance(width, int):
            raise UnsupportedModelError(
                f"{self.facts.name}: cross_attention_dim is {width!r}, which cannot be converted"
            )
        inputs = [
            self._tensor("sample", [(batch, config.get("in_channels", 4), *size) for size in self.latents]),
            self._tensor("timestep", [(batch,)]),
            self._tensor("encoder_hidden_states", [(batch, width, 1, self._text_tokens())]),
        ]
        if config.get("addition_embed_type") == "text_time":
            embeds = self.facts.configs["text_encoder_2"]["projection_dim"]
            numbers = (config["projection_class_embeddings_input_dim"] - embeds) // config["addition_time_embed_dim"]
            inputs += [self._tensor("time_ids", [(batch, numbers)]), self._tensor("text_embeds", [(batch, embeds)])]
        if config.get("time_cond_proj_dim") is not None:
            # A consistency model is told the guidance scale as an embedding; Apple's converter drops that layer.
            inputs.append(self._tensor("timestep_cond", [(batch, config["time_cond_proj_dim"])]))
        return inputs, ["noise_pred"]

    def _text_tokens(self) -> int:
        """What the UNet reads; one made for the system's text encoder reads that one's vectors alone."""
        if self.facts.projection is not None:
            return MULTILINGUAL_TOKENS
        text = self.facts.configs.get("text_encoder") or self.facts.configs["text_encoder_2"]
        tokens: int = text.get("max_position_embeddings", 77)
        return tokens

    def _residuals(self, config: Mapping[str, Any]) -> list[list[Shape]]:
        by_size = [residual_shapes(config, self.batch, *size) for size in self.latents]
        return [list(shapes) for shapes in zip(*by_size, strict=True)]

    def _vae_decoder(self, config: Mapping[str, Any]) -> tuple[list[TensorInfo], list[str]]:
        channels = config.get("latent_channels", 4)
        return [self._tensor("z", [(1, channels, *size) for size in self.latents], self._vae_dtype(config))], ["image"]

    def _vae_encoder(self, config: Mapping[str, Any]) -> tuple[list[TensorInfo], list[str]]:
        channels = config.get("in_channels", 3)
        shapes = [(1, channels, height, width) for width, height in self.sizes]
        return [self._tensor("x", shapes, self._vae_dtype(config))], ["latent"]

    def _safety_checker(self, config: Mapping[str, Any]) -> tuple[list[TensorInfo], list[str]]:
        side = config["vision_config"].get("image_size", 224)
        inputs = [
            self._tensor("clip_input", [(1, 3, side, side)]),
            self._tensor("images", [(1, height, width, 3) for width, height in self.sizes]),
            self._tensor("adjustment", [(1,)]),
        ]
        return inputs, ["filtered_images", "has_nsfw_concepts", "concept_scores"]

    def _vae_dtype(self, config: Mapping[str, Any]) -> DType:
        return "float32" if self._float32_vae(config) else "float16"

    def _float32_vae(self, config: Mapping[str, Any]) -> bool:
        # SDXL's own VAE overflows in float16. Whoever brings another one has taken care of that.
        return self.facts.family == "sdxl" and not self.facts.custom_vae and bool(config.get("force_upcast", True))


def _component(kind: str) -> str:
    return {"vae_decoder": "vae", "vae_encoder": "vae", "control-unet": "unet"}.get(kind, kind)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

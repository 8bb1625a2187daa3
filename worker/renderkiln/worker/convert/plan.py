"""Plans a conversion: from what a model is and what was asked for, to stages with their files, tensors and digests.

Pure: reads no file and loads no library of models, so that all of it can be tested with made-up models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from renderkiln.schema.errors import BadInputError, UnsupportedModelError

from ..runtimes.base import TensorInfo
from ..runtimes.coreai.description import MAIN
from ..runtimes.naming import PROJECTION as PROJECTION
from ..runtimes.naming import XCODE_NAMES, controlnet_stage, safe_name
from .facts import ControlNetFacts, ModelFacts, ProjectionFacts, Record
from .interfaces import Interfaces
from .options import COMPRESSED, STAGES, Attention, ConvertOptions, Format, Target

#: How the models of a format are called.
SUFFIXES: Mapping[Format, str] = {"coreml": ".mlpackage", "coreai": ".aimodel"}
#: Changed whenever the same settings would give another package than before.
CONVERTER = 1


class StagePlan(Record):
    """One stage to convert."""

    format: Format = "coreml"
    #: text_encoder, unet, …; a ControlNet's is `controlnet-NAME`.
    stage: str
    #: What kind of stage it is: one of `STAGES`.
    kind: str
    #: The folder of its weights in the model: text_encoder, unet, vae …; for a ControlNet its number.
    component: str
    #: The packages to write: one, or two chunks.
    files: tuple[str, ...]
    #: Of a Core AI asset: a function for each size, the default size's first.
    functions: tuple[str, ...] = ()
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
    if options.format == "coreml" and options.target != "macOS15":
        for stage in stages:
            flexible = [tensor.name for tensor in stage.inputs if len(tensor.shapes) > 1]
            if len(flexible) > 1:
                raise BadInputError(
                    f"--sizes: {stage.stage} has {len(flexible)} inputs that change with the size, which Core ML takes "
                    "from macOS 15 on; add --deployment-target macOS15, or give one size"
                )
    return Plan(stages=stages, sizes=sizes)


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
        self.facts, self.options, self.versions, self.sizes = facts, options, dict(versions), sizes
        self.interfaces = Interfaces(facts, options, sizes, scale)

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
        inputs, outputs = self.interfaces.projection(projection.inputs)
        return self._finish(
            stage=PROJECTION,
            kind=PROJECTION,
            component=PROJECTION,
            files=("MultilingualTextEncoderProjection.mlpackage",),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
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
        inputs, outputs = self.interfaces.of(kind, config)
        has_attention = kind in ("unet", "control-unet")
        return self._finish(
            stage=kind,
            kind=kind,
            component=component,
            files=self._files(kind, chunked=has_attention and self.options.chunk_unet),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            float32=self.interfaces.needs_float32(kind, config),
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
        inputs, outputs = self.interfaces.of("controlnet", config)
        return self._finish(
            stage=controlnet_stage(controlnet.name),
            kind="controlnet",
            component=str(index),
            files=(f"ControlNet_{safe_name(controlnet.name)}{SUFFIXES[self.options.format]}",),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            float32=self.interfaces.needs_float32("controlnet", config),
            attention=self.options.attention,
            weights=controlnet.weights,
            config=config,
        )

    def _files(self, kind: str, *, chunked: bool) -> tuple[str, ...]:
        """As Apple's converter for that format names them."""
        if self.options.format == "coreai":
            return (f"{XCODE_NAMES[kind]}.aimodel",)
        chunks = ("_chunk1", "_chunk2") if chunked else ("",)
        name = f"Stable_Diffusion_version_{safe_name(self.facts.name)}_{kind}"
        return tuple(f"{name}{chunk}.mlpackage" for chunk in chunks)

    def _functions(self, inputs: Sequence[TensorInfo]) -> tuple[str, ...]:
        """A function for each size; what is of no size, as text is, needs one alone."""
        if self.options.format == "coreml":
            return ()
        count = max(len(tensor.shapes) for tensor in inputs)
        return (MAIN, *(f"{MAIN}_{width}x{height}" for width, height in self.sizes[1:count]))

    def _finish(self, *, weights: str, config: Mapping[str, Any], **fields: Any) -> StagePlan:
        kind: str = fields["kind"]
        compressed = kind in COMPRESSED
        recipe = self.facts.recipes.get(_recipe_for(kind, self.facts))
        nbits = self.options.nbits if compressed and recipe is None else None
        takes_loras = kind in ("text_encoder", "text_encoder_2", "unet", "control-unet")
        fields.setdefault("target", self.options.target)
        fields |= {"format": self.options.format, "functions": self._functions(fields["inputs"])}
        plan = StagePlan(**fields, nbits=nbits, recipe=recipe is not None, settings_digest="")
        # What came with Core AI stays out of Core ML's digests, so that packages of before are still known.
        left_out = {"settings_digest"} | ({"format", "functions"} if self.options.format == "coreml" else set())
        settings = plan.model_dump(mode="json", exclude=left_out) | {
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


def _component(kind: str) -> str:
    return {"vae_decoder": "vae", "vae_encoder": "vae", "control-unet": "unet"}.get(kind, kind)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

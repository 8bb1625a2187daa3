"""What each kind of stage must take and give, as Apple's converter names it; held against a manifest before loading."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from renderkiln.schema.errors import ModelLoadError

from ...runtimes.base import TensorInfo
from ...runtimes.chain import interface
from ...runtimes.manifest import Manifest, StageInfo
from ...runtimes.naming import PROJECTION, kind_of

RESIDUAL = "additional_residual_"
#: What a multilingual projection takes.
VECTORS = "nlcontextualembeddings_output"
_RESIDUALS = re.compile(rf"{RESIDUAL}\d+")
_DENOISER = ("sample", "timestep", "encoder_hidden_states")
#: What SDXL and consistency models take besides.
_SOMETIMES = ("time_ids", "text_embeds", "timestep_cond")


@dataclass(frozen=True)
class _Kind:
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    may_take: tuple[str, ...] = ()
    takes_residuals: bool = False
    gives_residuals: bool = False


_TEXT = {
    "sd": (_Kind(("input_ids",), ("last_hidden_state",)),),
    "sdxl": (_Kind(("input_ids",), ("hidden_embeds", "pooled_outputs")),),
}
#: Core ML's names of what a VAE encoder takes and gives, and Core AI's.
VAE_ENCODERS = {"x": "latent", "image": "latent_params"}
#: What a stage may be, by its kind: the first whose inputs it has.
_KINDS = {
    "unet": (_Kind(_DENOISER, ("noise_pred",), _SOMETIMES),),
    "control-unet": (_Kind(_DENOISER, ("noise_pred",), _SOMETIMES, takes_residuals=True),),
    "controlnet": (_Kind((*_DENOISER, "controlnet_cond"), (), _SOMETIMES, gives_residuals=True),),
    "vae_decoder": (_Kind(("z",), ("image",)),),
    "vae_encoder": tuple(_Kind((takes,), (gives,)) for takes, gives in VAE_ENCODERS.items()),
    "safety_checker": (_Kind(("clip_input", "images", "adjustment"), ("has_nsfw_concepts",)),),
    PROJECTION: (_Kind((VECTORS,), ("encoder_hidden_states",)),),
}
#: Without these nothing can be rendered; of the last two, either will do.
_NEEDED = {"sd": ("text_encoder", "vae_decoder"), "sdxl": ("text_encoder", "text_encoder_2", "vae_decoder")}
_UNETS = ("unet", "control-unet")


def check_manifest(manifest: Manifest, scale: int) -> None:
    """Holds a manifest to what can be rendered with.

    Args:
        scale: pixels of the picture for each of the latents', in each direction.

    Raises:
        ModelLoadError: a stage is missing, or takes or gives what no stage of its kind does.
    """
    missing = [stage for stage in _NEEDED[manifest.family] if stage not in manifest.stages]
    if not any(stage in manifest.stages for stage in _UNETS):
        missing.append("unet")
    if missing:
        raise ModelLoadError(f"{manifest.model} has no {' and no '.join(missing)}: convert it with all its stages")
    for name, stage in manifest.stages.items():
        _check_stage(manifest, name, stage)
        if name in _UNETS or kind_of(name) == "controlnet":
            _check_sizes(manifest, name, stage, "sample", scale)
    _check_sizes(manifest, "vae_decoder", manifest.stages["vae_decoder"], "z", scale)
    for name, stage in manifest.stages.items():
        if name in _UNETS or kind_of(name) == "controlnet":
            _check_tokens(manifest, name, stage)


def tensors(stage: StageInfo) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
    """What a stage takes and gives, its chunks as one."""
    return interface((_named(package.inputs), _named(package.outputs)) for package in stage.packages)


def unet_dtype(manifest: Manifest) -> str:
    """What a model's UNet computes in, as far as its inputs tell."""
    stage = manifest.stages.get("unet") or manifest.stages["control-unet"]
    return tensors(stage)[0]["sample"].dtype


def _check_stage(manifest: Manifest, name: str, stage: StageInfo) -> None:
    is_text = name in ("text_encoder", "text_encoder_2")
    kinds = _TEXT[manifest.family] if is_text else _KINDS.get(kind_of(name))
    if kinds is None:
        return  # a stage that rendering does not use
    takes, gives = tensors(stage)
    kind = next((each for each in kinds if takes.keys() >= set(each.takes)), kinds[0])
    for each in takes:
        if each not in (*kind.takes, *kind.may_take) and not (kind.takes_residuals and _RESIDUALS.fullmatch(each)):
            raise ModelLoadError(
                f"{name} of {manifest.model} takes {each}, which nothing here gives it; is one of its chunks missing?"
            )
        if not takes[each].shapes:
            raise ModelLoadError(f"{name} of {manifest.model} takes {each} in shapes that are not listed")
    for each in kind.takes:
        if each not in takes:
            raise ModelLoadError(f"{name} of {manifest.model} takes no {each}; it takes {', '.join(takes)}")
    for each in kind.gives:
        if each not in gives:
            raise ModelLoadError(f"{name} of {manifest.model} gives no {each}; it gives {', '.join(gives)}")
    if kind.gives_residuals and not all(_RESIDUALS.fullmatch(each) for each in gives):
        raise ModelLoadError(f"{name} of {manifest.model} gives {', '.join(gives)}, not only residuals")


def _check_sizes(manifest: Manifest, name: str, stage: StageInfo, tensor: str, scale: int) -> None:
    takes, _ = tensors(stage)
    found = {(shape[3] * scale, shape[2] * scale) for shape in takes[tensor].shapes if len(shape) == 4}
    if found != set(manifest.sizes):
        raise ModelLoadError(
            f"{manifest.model} is said to render {_listed(manifest.sizes)}; its {name} takes {_listed(found)}"
        )


def _check_tokens(manifest: Manifest, name: str, stage: StageInfo) -> None:
    """A UNet reads as many tokens as its text encoder, or the system's, has."""
    encoder = PROJECTION if PROJECTION in manifest.stages else "text_encoder"
    takes, _ = tensors(manifest.stages[encoder])
    given = next(iter(takes.values())).shapes[0][1]
    text = tensors(stage)[0]["encoder_hidden_states"].shapes[0]
    taken = text[1] if len(text) == 3 else text[-1]
    if given != taken:
        raise ModelLoadError(
            f"{name} of {manifest.model} reads {taken} tokens, and its {encoder} has {given}: convert the model again"
        )


def _listed(sizes: Iterable[tuple[int, int]]) -> str:
    return ", ".join(f"{width}x{height}" for width, height in sorted(sizes)) or "no size"


def _named(infos: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    return {info.name: info for info in infos}

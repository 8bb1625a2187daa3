"""Loads a component of a model as a torch module in float32, from a folder or out of a checkpoint file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from renderkiln.schema.errors import ModelLoadError, RenderkilnError

from ..engine.libraries import diffusers, transformers
from ..models.weights import find_weights, read_json
from .lora import fuse_lora, read_lora
from .options import Lora
from .plan import PROJECTION, StagePlan
from .source import Source, component_folder
from .weights import read_header

_CLASSES: dict[str, Any] = {
    "AutoencoderKL": diffusers.AutoencoderKL,
    "CLIPTextModel": transformers.CLIPTextModel,
    "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
    "ControlNetModel": diffusers.ControlNetModel,
    "StableDiffusionSafetyChecker": diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker,
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
}
#: Eager attention fills CLIP's mask with numbers that float16 does not have.
_CLIP = {"attn_implementation": "sdpa"}
#: What the names of a component's tensors begin with in a checkpoint file. The rest of it is not read.
_CHECKPOINT_PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}


def load_component(source: Source, component: str, loras: tuple[Lora, ...] = ()) -> Any:
    """A component, ready to be called, with its LoRAs fused.

    Raises:
        ModelLoadError: the weights are missing, damaged, or do not fit the config.
        BadInputError: a LoRA does not fit.
    """
    folder = component_folder(source, component)
    class_name = read_json(source.folder / "model_index.json")[component][1]
    if source.checkpoint is not None and folder == source.folder / component:
        module = _guarded(folder, class_name, lambda: _from_checkpoint(source, component, class_name))
    else:
        module = _guarded(folder, class_name, lambda: _from_folder(folder, class_name))
    for lora in loras:
        fuse_lora(read_lora(lora.path), lora.weight, component, module)
    return module.eval().requires_grad_(False)


def unused_half(plan: StagePlan) -> tuple[str, ...]:
    """The parts of a VAE that a stage does without; none, of other components."""
    halves = {"vae_decoder": ("encoder", "quant_conv"), "vae_encoder": ("decoder", "post_quant_conv")}
    return halves.get(plan.kind, ())


def weights_size(source: Source, plan: StagePlan) -> int:
    """Bytes of a stage's weights at the precision that they are written in; headers are read, no weights.

    Raises:
        ModelLoadError: a file is missing or damaged.
    """
    sizes = _tensor_sizes(source, plan)
    unused = tuple(f"{name}." for name in unused_half(plan))
    return (4 if plan.float32 else 2) * sum(count for name, count in sizes.items() if not name.startswith(unused))


def _tensor_sizes(source: Source, plan: StagePlan) -> Mapping[str, int]:
    """Values of each tensor of a stage's component, by its name."""
    if plan.kind == "controlnet":
        return find_weights(source.controlnets[int(plan.component)][1], half=True).sizes
    if plan.kind == PROJECTION:
        assert source.projection is not None
        return _sizes_in(source.projection, ("",))
    folder = component_folder(source, plan.component)
    if source.checkpoint is None or folder != source.folder / plan.component:
        return find_weights(folder, half=True).sizes
    return _sizes_in(source.checkpoint, _CHECKPOINT_PREFIXES[plan.component])


def _sizes_in(path: Path, prefixes: tuple[str, ...]) -> dict[str, int]:
    """Values of each tensor of a file whose name begins so, by the rest of its name."""
    counts = {name: math.prod(tensor["shape"]) for name, tensor in read_header(path).items()}
    return {
        name.removeprefix(prefix): count
        for prefix in prefixes
        for name, count in counts.items()
        if name.startswith(prefix)
    }


def load_controlnet(folder: Path) -> Any:
    """A ControlNet, ready to be called. Raises ModelLoadError."""
    module = _guarded(folder, "ControlNetModel", lambda: _from_folder(folder, "ControlNetModel"))
    return module.eval().requires_grad_(False)


def load_projection(path: Path) -> Any:
    """The linear layer of a multilingual projection. Raises ModelLoadError."""
    from safetensors.torch import load_file

    def load() -> Any:
        tensors = {name.rpartition(".")[2]: tensor.float() for name, tensor in load_file(path).items()}
        outputs, inputs = tensors["weight"].shape
        layer = torch.nn.Linear(inputs, outputs, bias="bias" in tensors)
        layer.load_state_dict(tensors)
        return layer

    return _guarded(path, "Linear", load).eval().requires_grad_(False)


def _guarded(folder: Path, class_name: str, load: Callable[[], Any]) -> Any:
    try:
        with torch.no_grad():
            return load()
    except RenderkilnError:
        raise
    except Exception as error:  # these libraries raise what comes: OSError, ValueError, RuntimeError …
        raise ModelLoadError(f"{folder} cannot be loaded as {class_name}: {error}") from error


def _from_folder(folder: Path, class_name: str) -> Any:
    # Half precision suffices where both are there: it is what gets written.
    weights = find_weights(folder, half=True)
    module, info = _CLASSES[class_name].from_pretrained(
        folder,
        dtype=torch.float32,
        variant=weights.variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        **(_CLIP if class_name.startswith("CLIP") else {}),
    )
    _complain(folder, sorted(info["missing_keys"]))
    return module


def _from_checkpoint(source: Source, component: str, class_name: str) -> Any:
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from safetensors import safe_open

    assert source.checkpoint is not None
    prefixes = _CHECKPOINT_PREFIXES[component]
    with safe_open(source.checkpoint, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118
    if not tensors:
        raise ModelLoadError(f"{source.checkpoint} holds no {component}; --stages converts what it does hold")
    config, kind = str(source.folder), _CLASSES[class_name]
    settings: dict[str, Any] = {"config": config, "subfolder": component, "local_files_only": True}
    if class_name.startswith("CLIP"):
        module = create_diffusers_clip_model_from_ldm(kind, tensors, torch_dtype=torch.float32, **settings)
    else:
        module = kind.from_single_file(tensors, dtype=torch.float32, **settings)
    missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    _complain(source.checkpoint, missing)
    return module.to(torch.float32)


def _complain(where: Path, missing: list[str]) -> None:
    # Both libraries would fill what a file lacks with random numbers, and go on.
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ModelLoadError(f"the weights in {where} lack {', '.join(missing[:3])}{more}: the model is not complete")

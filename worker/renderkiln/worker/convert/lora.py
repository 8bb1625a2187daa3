"""Fuses LoRAs into a model's weights: W + weight · (alpha / rank) · up · down.

Reads the names of diffusers and peft (`unet.….lora_A.weight`, `….lora.down.weight`, `….to_q_lora.down.weight`) and of
kohya's scripts (`lora_unet_…`, `lora_te_…`, `lora_te1_…`, `lora_te2_…`), the latter also where they count blocks as the
original UNet does. diffusers' own loader would need peft, a library for training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import BadInputError

from .weights import read_header

_DOWN = (".lora_down.weight", ".lora_A.weight", ".lora.down.weight", "_lora.down.weight", ".lora_A.default.weight")
_UP = (".lora_up.weight", ".lora_B.weight", ".lora.up.weight", "_lora.up.weight", ".lora_B.default.weight")
_OTHERS = {"hada_": "LoHa", "lokr_": "LoKr", "dora_scale": "DoRA", "lora_mid": "LoCon with a middle factor"}
_PREFIXES = {
    "lora_unet_": "unet",
    "unet.": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
#: Parts of a residual block, as the original UNet calls them and as diffusers does.
_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)_(\d+)(?:_(\d+))?(?:_(.+))?")


@dataclass
class Factors:
    """The tensors' names of one layer's LoRA."""

    down: str = ""
    up: str = ""
    alpha: str = ""


@dataclass(frozen=True)
class LoraFile:
    """Which layers of which components a LoRA changes."""

    path: Path
    #: By component, then by the layer's name as the file has it, with dots as underscores.
    layers: Mapping[str, Mapping[str, Factors]] = field(default_factory=dict)


def read_lora(path: Path) -> LoraFile:
    """What a LoRA file holds, from its header.

    Raises:
        BadInputError: it is another kind of adapter, or holds no LoRA.
        ModelLoadError: it is damaged.
    """
    names = list(read_header(path))
    for mark, kind in _OTHERS.items():
        if any(mark in name for name in names):
            raise BadInputError(f"--lora {path}: it is a {kind}, which cannot be fused; LoRAs can")
    layers: dict[str, dict[str, Factors]] = {}
    for name in names:
        component, rest = _component(path, name)
        for attribute, suffixes in (("down", _DOWN), ("up", _UP), ("alpha", (".alpha",))):
            suffix = next((each for each in suffixes if rest.endswith(each)), None)
            if suffix is not None:
                layer = _layer(rest.removesuffix(suffix))
                setattr(layers.setdefault(component, {}).setdefault(layer, Factors()), attribute, name)
                break
        else:
            raise BadInputError(f"--lora {path}: {name} is not a name that a LoRA has")
    for component, factors in layers.items():
        for layer, each in factors.items():
            if not (each.down and each.up):
                raise BadInputError(f"--lora {path}: {component} {layer} lacks one of its two factors")
    if not layers:
        raise BadInputError(f"--lora {path}: it holds no LoRA")
    return LoraFile(path, layers)


def fuse_lora(lora: LoraFile, weight: float, component: str, module: Any) -> int:
    """Adds what a LoRA has for a component to the weights of its module, in place; gives the number of layers.

    Raises:
        BadInputError: it names a layer that the module has not, or one of another shape.
    """
    import torch
    from safetensors import safe_open

    wanted = lora.layers.get(component, {})
    if not wanted:
        return 0
    targets = _targets(module)
    with safe_open(lora.path, framework="pt") as file, torch.no_grad():
        for layer, factors in wanted.items():
            target = _find(layer, targets, module)
            if target is None:
                raise BadInputError(
                    f"--lora {lora.path}: the model's {component} has no layer {layer}; the LoRA is for another model"
                )
            down, up = (file.get_tensor(name).float() for name in (factors.down, factors.up))
            rank = down.shape[0]
            alpha = float(file.get_tensor(factors.alpha)) if factors.alpha else float(rank)
            if up.flatten(1).shape[1] != rank or up.shape[0] * down.flatten(1).shape[1] != target.numel():
                raise BadInputError(
                    f"--lora {lora.path}: {layer} is {tuple(up.shape)} by {tuple(down.shape)}, and the model's is "
                    f"{tuple(target.shape)}; the LoRA is for another model"
                )
            delta = up.flatten(1) @ down.flatten(1)
            target.data += (weight * alpha / rank) * delta.reshape(target.shape)
    return len(wanted)


def _component(path: Path, name: str) -> tuple[str, str]:
    for prefix, component in _PREFIXES.items():
        if name.startswith(prefix):
            return component, name.removeprefix(prefix)
    raise BadInputError(
        f"--lora {path}: {name} is for neither UNet nor text encoder; known names begin with {', '.join(_PREFIXES)}"
    )


def _layer(name: str) -> str:
    # Old diffusers: `attn1.processor.to_q_lora`, whose layer is `attn1.to_q`, and `to_out_lora`, which is `to_out.0`.
    name = name.replace(".processor.", ".").removesuffix("_lora")
    flat = name.replace(".", "_")
    return f"{flat}_0" if flat.endswith("_to_out") else flat


def _targets(module: Any) -> dict[str, Any]:
    return {
        name.removesuffix(".weight").replace(".", "_"): parameter
        for name, parameter in module.named_parameters()
        if name.endswith(".weight") and parameter.ndim in (2, 4)
    }


def _find(layer: str, targets: Mapping[str, Any], module: Any) -> Any:
    # transformers' CLIPTextModel has lost its inner `text_model`; LoRAs have it in their names still.
    candidates: Iterable[str] = (layer, layer.removeprefix("text_model_"), _from_original(layer, module))
    return next((targets[name] for name in candidates if name in targets), None)


def _from_original(layer: str, module: Any) -> str:
    """A layer's name by the original UNet's count of blocks, as diffusers has it; '' if it is none."""
    match = _BLOCK.fullmatch(layer)
    config = getattr(module, "config", None)
    per_block = getattr(config, "layers_per_block", None)
    if match is None or not isinstance(per_block, int):
        return ""
    side, index, part, rest = match[1], int(match[2]), int(match[3] or 0), match[4] or ""
    if side == "middle_block":
        # Its parts are counted where the others count blocks: residual, attention, residual.
        return _part("mid_block", index % 2, index // 2, rest)
    if side == "input_blocks":
        if index == 0:
            return "conv_in"
        block, layer_index = divmod(index - 1, per_block + 1)
        if layer_index == per_block:
            return f"down_blocks_{block}_downsamplers_0_conv"
        return _part(f"down_blocks_{block}", part, layer_index, rest)
    block, layer_index = divmod(index, per_block + 1)
    if rest == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    return _part(f"up_blocks_{block}", part, layer_index, rest)


def _part(where: str, part: int, index: int, rest: str) -> str:
    if part == 0:
        return f"{where}_resnets_{index}_{_RESNET.get(rest, rest)}"
    return f"{where}_attentions_{index}_{rest}"

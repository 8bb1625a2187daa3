"""Makes the inputs of a stage's check: random ones, and one such as the stage meets when it renders."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import torch

from ..engine.libraries import transformers
from ..models.weights import read_json
from ..runtimes.base import Array, TensorInfo
from .loading import load_component, load_controlnet
from .options import Lora
from .plan import PROJECTION, StagePlan
from .source import Source, component_folder
from .stages import TextEncoderStage

PROMPT = "a photograph of a lighthouse on a cliff above the sea, morning light"
NEGATIVE_PROMPT = "blurry, dark"
#: A timestep from the middle of the way, as schedulers with trailing spacing have it.
_TIMESTEP = 499.0
_SEED = 20_240_601

Inputs = dict[str, Array]


def make_inputs(plan: StagePlan, source: Source, family: str, loras: tuple[Lora, ...], count: int) -> dict[str, Inputs]:
    """`count` random inputs and a real one, by name; each an array for every input of the stage, of its dtype.

    A stage of several sizes gets them in turn, the default one first; so `count` is raised where sizes are more.
    """
    sizes = max(len(tensor.shapes) for tensor in plan.inputs)
    vocabulary = _vocabulary(source, plan) if plan.kind.startswith("text_encoder") else 0
    made = {
        f"random {number + 1}": _random(plan, number, number % sizes, vocabulary) for number in range(max(count, sizes))
    }
    if plan.kind != PROJECTION:  # what a real one looks like only macOS knows
        made["real"] = _real(plan, source, family, loras)
    return made


def picture(height: int, width: int) -> torch.Tensor:
    """A small landscape, (1, 3, H, W) in [-1, 1]: smooth areas, edges and some texture, the same each time."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    sky = torch.stack([0.3 + 0.5 * y, 0.5 + 0.3 * y, 0.95 - 0.2 * y])
    hill = 0.62 + 0.08 * torch.sin(9 * x) + 0.03 * torch.sin(31 * x)
    grass = torch.stack([0.2 + 0.1 * torch.sin(140 * x * y), 0.5 - 0.2 * (y - 0.6), 0.15 + 0 * x])
    scene = torch.where(y > hill, grass, sky)
    sun = (x - 0.7) ** 2 + (y - 0.25) ** 2 < 0.012
    scene = torch.where(sun, torch.tensor([1.0, 0.9, 0.5])[:, None, None], scene)
    return (2 * scene - 1).clamp(-1, 1)[None]


def _random(plan: StagePlan, number: int, size: int, vocabulary: int) -> Inputs:
    random = np.random.default_rng(_SEED + number)

    def make(tensor: TensorInfo) -> Array:
        shape = tensor.shapes[size % len(tensor.shapes)]
        if tensor.name == "input_ids":
            values: Any = random.integers(0, vocabulary, shape)
        elif tensor.name == "timestep":
            values = np.full(shape, random.integers(0, 1000))
        elif tensor.name == "time_ids":
            values = np.tile(random.integers(0, 1024, shape[1:]), (shape[0], 1))
        elif tensor.name in ("x", "image", "images", "controlnet_cond"):
            values = random.uniform(0 if tensor.name == "controlnet_cond" else -1, 1, shape)
        elif tensor.name == "adjustment":
            values = np.zeros(shape)
        else:
            values = random.standard_normal(shape)
        array: Array = values.astype(tensor.dtype)
        return array

    return {tensor.name: make(tensor) for tensor in plan.inputs}


def _vocabulary(source: Source, plan: StagePlan) -> int:
    return int(_config(source, plan.component)["vocab_size"])


def _real(plan: StagePlan, source: Source, family: str, loras: tuple[Lora, ...]) -> Inputs:
    makers = {
        "text_encoder": lambda: _token_ids(source, plan.component, PROMPT),
        "text_encoder_2": lambda: _token_ids(source, plan.component, PROMPT),
        "vae_encoder": lambda: {plan.inputs[0].name: picture(*plan.inputs[0].shapes[0][2:])},
        "vae_decoder": lambda: {"z": _latents(source, plan.inputs[0].shapes[0])},
        "safety_checker": lambda: _for_checker(source, plan),
    }
    with torch.no_grad():
        values = makers[plan.kind]() if plan.kind in makers else _for_denoiser(plan, source, family, loras)
    gc.collect()  # the models that made them are not needed any longer
    return {tensor.name: values[tensor.name].numpy().astype(tensor.dtype) for tensor in plan.inputs}


def _token_ids(source: Source, component: str, prompt: str) -> dict[str, torch.Tensor]:
    folder = source.folder / component.replace("text_encoder", "tokenizer")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(
        prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return {"input_ids": ids}


def _latents(source: Source, shape: tuple[int, ...]) -> torch.Tensor:
    """The picture's latents of that shape, as the model's own VAE has them before scaling: the mean."""
    vae = load_component(source, "vae")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    mean: torch.Tensor = vae.encode(picture(shape[2] * factor, shape[3] * factor)).latent_dist.mean
    return mean


def _for_checker(source: Source, plan: StagePlan) -> dict[str, torch.Tensor]:
    by_name = {tensor.name: tensor.shapes[0] for tensor in plan.inputs}
    _, height, width, _ = by_name["images"]
    images = (picture(height, width) / 2 + 0.5).clamp(0, 1)
    side = by_name["clip_input"][-1]
    # As the feature extractor does: resized, then CLIP's mean and deviation taken out.
    resized = torch.nn.functional.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    normal = (resized - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
    return {"clip_input": normal, "images": images.permute(0, 2, 3, 1), "adjustment": torch.zeros(1)}


def _for_denoiser(plan: StagePlan, source: Source, family: str, loras: tuple[Lora, ...]) -> dict[str, torch.Tensor]:
    """Noise, a timestep from the middle, the embeddings of two prompts, and what else the UNet takes."""
    shapes = {tensor.name: tensor.shapes[0] for tensor in plan.inputs}
    batch, channels, height, width = shapes["sample"]
    noise = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(_SEED))
    values = {
        "sample": noise.expand(batch, -1, -1, -1),
        "timestep": torch.full((batch,), _TIMESTEP),
        **_text_embeddings(source, family, loras, batch),
    }
    text, is_turned = values["encoder_hidden_states"], len(shapes["encoder_hidden_states"]) == 4
    tokens = shapes["encoder_hidden_states"][-1 if is_turned else 1]
    if text.shape[1] != tokens:
        # For the system's text encoder, of which only macOS has real ones: these, with zeros behind them as it has.
        values["encoder_hidden_states"] = torch.nn.functional.pad(text, (0, 0, 0, tokens - text.shape[1]))
    if "controlnet_cond" in shapes:
        _, _, cond_height, cond_width = shapes["controlnet_cond"]
        scene = picture(cond_height, cond_width) / 2 + 0.5
        values["controlnet_cond"] = scene[:, :1].expand(shapes["controlnet_cond"])
    if "time_ids" in shapes:
        scale = 2 ** (len(_config(source, "vae")["block_out_channels"]) - 1)
        size = [float(height * scale), float(width * scale)]
        ids = [*size, 0.0, 0.0, *size][: shapes["time_ids"][1]]
        values["time_ids"] = torch.tensor([ids]).expand(batch, -1)
    if "timestep_cond" in shapes:
        values["timestep_cond"] = torch.zeros(shapes["timestep_cond"])
    residuals = [name for name in shapes if name.startswith("additional_residual_")]
    if residuals:
        made = _residuals(source, values, shapes)
        values.update(zip(residuals, made, strict=True))
    if is_turned:
        values["encoder_hidden_states"] = values["encoder_hidden_states"].transpose(1, 2).unsqueeze(2)
    return {name: values[name] for name in shapes}


def _residuals(
    source: Source, values: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]
) -> list[torch.Tensor]:
    names = [name for name in shapes if name.startswith("additional_residual_")]
    if not source.controlnets:
        return [torch.zeros(shapes[name]) for name in names]
    controlnet = load_controlnet(source.controlnets[0][1])
    batch, _, height, width = shapes["sample"]
    factor = 2 ** (len(controlnet.config.conditioning_embedding_out_channels) - 1)
    added = {name: values[name] for name in ("time_ids", "text_embeds") if name in values}
    down, middle = controlnet(
        values["sample"],
        values["timestep"],
        values["encoder_hidden_states"],
        controlnet_cond=picture(height * factor, width * factor).expand(batch, -1, -1, -1) / 2 + 0.5,
        added_cond_kwargs=added or None,
        return_dict=False,
    )
    return [*down, middle]


def _text_embeddings(source: Source, family: str, loras: tuple[Lora, ...], batch: int) -> dict[str, torch.Tensor]:
    """Of two prompts, (B, S, C), and for SDXL pooled."""
    prompts = [NEGATIVE_PROMPT, PROMPT][-batch:]
    components = ["text_encoder"] if family == "sd" else ["text_encoder", "text_encoder_2"]
    hidden, pooled = [], torch.empty(0)
    for component in components:
        if not (source.folder / component / "config.json").is_file():
            continue  # SDXL's refiner has the second one only
        encoder = load_component(source, component, loras)
        stage = TextEncoderStage(encoder, hidden=family == "sdxl")
        outputs = [stage(_token_ids(source, component, prompt)["input_ids"]) for prompt in prompts]
        hidden.append(torch.cat([states for states, _ in outputs]))
        pooled = torch.cat([pool for _, pool in outputs])
        del encoder, stage
        gc.collect()
    return {"encoder_hidden_states": torch.cat(hidden, dim=-1), "text_embeds": pooled}


def _config(source: Source, component: str) -> dict[str, Any]:
    return read_json(component_folder(source, component) / "config.json")

"""Model folders of any size that take no room: files with a true header, or a manifest, and nothing in them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from renderkiln.worker.runtimes import manifest
from renderkiln.worker.runtimes.base import TensorInfo
from renderkiln.worker.runtimes.manifest import Manifest, PackageInfo, StageInfo

CLASSES = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "safety_checker": "StableDiffusionSafetyChecker",
}
#: Values of Stable Diffusion 1.5's components, about.
SD15: Mapping[str, Mapping[str, int]] = {
    "text_encoder": {"weight": 123_000_000},
    "unet": {"weight": 860_000_000},
    "vae": {"encoder.w": 34_000_000, "quant_conv.w": 72, "decoder.w": 49_500_000, "post_quant_conv.w": 20},
    "safety_checker": {"weight": 304_000_000},
}


def write_weights(path: Path, values: Mapping[str, int]) -> None:
    """A safetensors file in float16 of tensors of so many values each, all of it a hole."""
    header: dict[str, Any] = {}
    end = 0
    for name, count in values.items():
        header[name] = {"dtype": "F16", "shape": [count], "data_offsets": [end, end + 2 * count]}
        end += 2 * count
    said = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(said)) + said)
        file.truncate(8 + len(said) + end)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def small_files(folder: Path, components: Sequence[str], *, side: int = 64, blocks: int = 4) -> Path:
    """The small files of a model. `side`: of the latents that it was made for."""
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    index |= {name: ["library", kind] if name in components else [None, None] for name, kind in CLASSES.items()}
    write_json(folder / "model_index.json", index)
    write_json(folder / "unet" / "config.json", {"sample_size": side})
    vae = {"block_out_channels": [8] * blocks, "sample_size": side * 2 ** (blocks - 1)}
    write_json(folder / "vae" / "config.json", vae)
    return folder


def torch_model(folder: Path, components: Mapping[str, Mapping[str, int]] = SD15, **settings: int) -> Path:
    """A model in diffusers' layout."""
    small_files(folder, tuple(components), **settings)
    for name, values in components.items():
        write_weights(folder / name / "model.safetensors", values)
    return folder


def converted(
    below: Path,
    sizes_bytes: Mapping[str, int],
    variant: str = "original",
    sizes: tuple[tuple[int, int], ...] = ((512, 512),),
) -> Path:
    """A manifest of stages of so many bytes, without its packages."""
    tensor = TensorInfo(name="x", dtype="float32", shapes=((1,),))
    stages = {
        name: StageInfo(
            stage=name,
            packages=(
                PackageInfo(
                    file=f"{name}.mlpackage", size_bytes=size, sha256="0" * 64, inputs=(tensor,), outputs=(tensor,)
                ),
            ),
        )
        for name, size in sizes_bytes.items()
    }
    said = Manifest(
        model="m", pipeline="StableDiffusionPipeline", family="sd", variant=variant, sizes=sizes, stages=stages
    )
    below.mkdir(parents=True, exist_ok=True)
    manifest.save(said, below)
    return below

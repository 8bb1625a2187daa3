"""What the server of the tests has: tiny repositories in the layouts that the real Hub's have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ORIGINAL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PALETTIZED = "apple/coreml-stable-diffusion-v1-5-palettized"
#: Shapes of a model that draws 64x64: latents of 8x8, a text width of 32.
_INTERFACES: Mapping[str, tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]] = {
    "TextEncoder": ({"input_ids": (1, 77)}, {"last_hidden_state": (1, 77, 32), "pooled_outputs": (1, 32)}),
    "Unet": (
        {"sample": (2, 4, 8, 8), "timestep": (2,), "encoder_hidden_states": (2, 32, 1, 77)},
        {"noise_pred": ()},
    ),
    "VAEDecoder": ({"z": (1, 4, 8, 8)}, {"image": (1, 3, 64, 64)}),
    "VAEEncoder": ({"x": (1, 3, 64, 64)}, {"latent": (1, 8, 8, 8)}),
}
#: The UNet's first chunk gives what its second takes.
_CHUNKS = {
    "UnetChunk1": (_INTERFACES["Unet"][0], {"hidden": (2, 8, 8, 8)}),
    "UnetChunk2": ({"hidden": (2, 8, 8, 8)}, _INTERFACES["Unet"][1]),
}
STAGES = tuple(_INTERFACES)


def compiled(name: str, **changes: Any) -> dict[str, bytes]:
    """The files of a `.mlmodelc` as Xcode makes it, but for what Core ML would load; weights of 5,000 bytes."""
    takes, gives = {**_INTERFACES, **_CHUNKS}[name]
    metadata = {
        "metadataOutputVersion": "3.0",
        "storagePrecision": "Mixed (Float16, Palettized (6 bits))",
        "inputSchema": [_schema(each, shape) for each, shape in takes.items()],
        "outputSchema": [_schema(each, shape) for each, shape in gives.items()],
        **changes,
    }
    return {
        "coremldata.bin": f"core {name}".encode(),
        "metadata.json": json.dumps([metadata]).encode(),
        "model.mil": f"program of {name}".encode(),
        "weights/weight.bin": (name.encode() * 5000)[:5000],
    }


def compiled_folder(stages: Iterable[str] = STAGES) -> dict[str, bytes]:
    """A folder `compiled` of Apple's."""
    files = {f"{stage}.mlmodelc/{name}": data for stage in stages for name, data in compiled(stage).items()}
    return {**files, "merges.txt": b"of Apple's", "vocab.json": b"{}"}


def apples(
    variants: Iterable[str] = ("original", "split_einsum_v2"), **folders: Mapping[str, bytes]
) -> dict[str, bytes]:
    """A repository of Apple's, with compiled models; the weights tell the variants apart."""
    files = {"README.md": b"# Core ML", "a_model_split_einsum_v2_compiled.zip": b"zip" * 1000}
    for variant in variants:
        for name, data in folders.get(variant, compiled_folder()).items():
            own = data[:-20] + variant.encode().rjust(20) if name.endswith("weight.bin") else data
            files[f"{variant}/compiled/{name}"] = own
    return files


def small() -> dict[str, bytes]:
    """The small files of a tiny Stable Diffusion 1."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "safety_checker": [None, None],
    }
    return {
        "model_index.json": json.dumps(index).encode(),
        "scheduler/scheduler_config.json": b'{"_class_name": "PNDMScheduler"}',
        "text_encoder/config.json": b'{"architectures": ["CLIPTextModel"]}',
        "tokenizer/merges.txt": b"#version: 0.2\na b",
        "tokenizer/vocab.json": b'{"a": 0}',
        "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
        "vae/config.json": b'{"_class_name": "AutoencoderKL", "block_out_channels": [8, 16, 16, 16]}',
    }


def safetensors(count: int = 1200) -> bytes:
    """A file with one tensor of half precision."""
    header = json.dumps({"weight": {"dtype": "F16", "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(2 * count)


def diffusers() -> dict[str, bytes]:
    """A repository in diffusers' layout as most are: two precisions, pickles, a checkpoint, another framework's."""
    files = {**small(), "v1-5-pruned.safetensors": safetensors(), "v1-5-pruned.ckpt": b"pickle", "README.md": b"#"}
    for component, stem in (
        ("text_encoder", "model"),
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
    ):
        files[f"{component}/{stem}.safetensors"] = safetensors(2400)
        files[f"{component}/{stem}.fp16.safetensors"] = safetensors()
        files[f"{component}/{stem}.bin"] = b"pickle" * 500
        files[f"{component}/flax_model.msgpack"] = b"flax" * 500
    return files


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder as a repository."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write(files: Mapping[str, bytes], folder: Path) -> Path:
    """A repository as a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _schema(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    floats = name in ("input_ids", "noise_pred", "image", "latent", "last_hidden_state", "pooled_outputs", "z", "x")
    dtype = "Float32" if floats else "Float16"
    return {
        "name": name,
        "type": "MultiArray",
        "dataType": dtype,
        "formattedType": f"MultiArray ({dtype} {' × '.join(map(str, shape))})",
        "hasShapeFlexibility": "0",
        "isOptional": "0",
        "shape": str(list(shape)),
        "shortDescription": "",
    }

"""Reads the small files of a model folder in diffusers' layout, and finds its weights.

Weights are read from safetensors only: a pickle can run any code when it is read.

model_index.json                      which classes the model is made of
unet/config.json                      the settings of one stage
unet/diffusion_pytorch_model.safetensors, or ….fp16.safetensors, or shards with an index
"""

from __future__ import annotations

import json
import math
import operator
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import ModelLoadError

#: The variant that half of all models on the Hub carry beside, or instead of, the full-precision files.
FP16 = "fp16"
#: safetensors' own limit on its header.
_MAX_HEADER = 100_000_000
_STEMS = ("diffusion_pytorch_model", "model")
#: What the names of the tensors of either half of a VAE begin with.
VAE_HALVES = {
    "vae_encoder": ("encoder.", "quant_conv."),
    "vae_decoder": ("decoder.", "post_quant_conv."),
}


@dataclass(frozen=True)
class Weights:
    """The weight files of one component."""

    paths: tuple[Path, ...]
    #: What `from_pretrained` calls its variant: None or 'fp16'.
    variant: str | None
    #: Number of values of each tensor, by its name.
    sizes: Mapping[str, int]

    def size_bytes(self, bytes_per_value: int, prefixes: tuple[str, ...] = ("",)) -> int:
        """Size in memory of the tensors whose names begin so, once they are held at that precision."""
        return bytes_per_value * sum(count for name, count in self.sizes.items() if name.startswith(prefixes))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises ModelLoadError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path.name} is missing from {path.parent}: the model is not complete") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} does not hold a JSON object")
    return value


def find_weights(folder: Path, *, half: bool) -> Weights:
    """The weights in one component's folder; checked to be whole, not read.

    Args:
        half: prefer the fp16 files where both are there.

    Raises:
        ModelLoadError: there are none, or only pickles, or a file is damaged or cut off.
    """
    for variant in (FP16, None) if half else (None, FP16):
        for stem in _STEMS:
            paths = _single_or_shards(folder, stem, variant)
            if paths:
                sizes: dict[str, int] = {}
                for path in paths:
                    sizes.update(_tensor_sizes(path))
                return Weights(paths, variant, sizes)
    if any(folder.glob("*.bin")) or any(folder.glob("*.ckpt")):
        raise ModelLoadError(
            f"{folder} holds weights as pickles only, which can run any code when they are read; "
            "renderkiln reads safetensors. Convert the model, or get its safetensors files"
        )
    raise ModelLoadError(f"{folder} holds no weights (*.safetensors): the model is not complete")


def _single_or_shards(folder: Path, stem: str, variant: str | None) -> tuple[Path, ...]:
    suffix = f".{variant}" if variant else ""
    single = folder / f"{stem}{suffix}.safetensors"
    if single.is_file():
        return (single,)
    index = folder / f"{stem}.safetensors.index{suffix}.json"
    if not index.is_file():
        return ()
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelLoadError(f"{index} names no shards")
    # A name alone: a path in an index must not lead out of the folder.
    return tuple(folder / Path(str(name)).name for name in sorted(set(shards.values())))


def _tensor_sizes(path: Path) -> dict[str, int]:
    """Values per tensor, from a safetensors header. Raises ModelLoadError if the file is damaged."""
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > _MAX_HEADER:
                raise ModelLoadError(f"{path} is damaged: it does not begin as a safetensors file does")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        # `index` takes whole numbers alone: of others, such as 1e308, no size can be computed.
        sizes = {name: math.prod(map(operator.index, tensor["shape"])) for name, tensor in header.items()}
        if min(sizes.values(), default=0) < 0:
            raise ValueError("a tensor of less than no values")
        actual = path.stat().st_size
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing: the model is not complete") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise ModelLoadError(f"{path} is damaged: its header cannot be read ({error})") from None
    if actual != 8 + length + end:
        raise ModelLoadError(f"{path} is cut off or damaged: {actual} bytes, not {8 + length + end}")
    return sizes

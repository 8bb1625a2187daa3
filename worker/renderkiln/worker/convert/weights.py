"""Tells weight files apart, and finds damaged ones, without reading them whole."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import ModelLoadError, UnsupportedModelError

#: safetensors' own limit on its header.
_MAX_HEADER = 100_000_000
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def refuse_pickles(name: str) -> None:
    """Raises UnsupportedModelError if a file's name is that of a pickle, which runs code when it is read."""
    if name.lower().endswith(_PICKLES):
        raise UnsupportedModelError(
            f"{name} is a pickle by its name, and a pickle can run any code when it is read; renderkiln reads "
            ".safetensors. Get the model's .safetensors file, or convert it on a machine that you can spare"
        )


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's header: dtype, shape and place of each tensor, by name.

    Raises:
        ModelLoadError: the file is missing, is none of safetensors', or is cut off.
        UnsupportedModelError: it is a GGUF file.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(b"GGUF"):
                raise UnsupportedModelError(f"{path} is a GGUF file, which is not read; get a .safetensors file")
            length = struct.unpack("<Q", start)[0]
            if length > _MAX_HEADER:
                raise ModelLoadError(f"{path} does not begin as a safetensors file does")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        actual = path.stat().st_size
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise ModelLoadError(f"{path} is damaged, or no safetensors file: its header cannot be read") from error
    if actual != 8 + length + end:
        raise ModelLoadError(f"{path} is cut off or damaged: {actual} bytes, not {8 + length + end}")
    return header


def fingerprint(paths: Iterable[Path]) -> str:
    """A digest that changes when weights do: of headers, sizes and times, as hashing gigabytes takes too long.

    A file of the Hub's cache is named by its own SHA-256 already, which is used instead.
    """
    digest = hashlib.sha256()
    for path in paths:
        real = path.resolve()
        if _SHA256.fullmatch(real.name):
            digest.update(real.name.encode())
            continue
        status = real.stat()
        with real.open("rb") as file:
            head = file.read(1 << 20)
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode() + head)
    return digest.hexdigest()

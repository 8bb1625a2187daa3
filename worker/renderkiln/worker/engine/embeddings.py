"""Encoded texts, kept so that a text encoder is loaded a few times a night instead of once a job.

In memory the ones used last, up to a bound; on disk, if wished, as safetensors files named by digest, up to another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load, save

log = logging.getLogger("renderkiln.renderer")

#: One text's tensors: (1, S, C) and, for SDXL, the pooled (1, P).
Tensors = tuple[torch.Tensor, ...]
#: After so many files were written, those beyond the bound are removed, the oldest first.
_SWEEP_EVERY = 100
#: In which text encoders compute.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class EmbeddingKey(NamedTuple):
    """What decides a text's embedding."""

    #: Of the encoder: its files and the arithmetic it runs in.
    encoder: str
    #: prompt or negative_prompt; they are encoded differently where clip_skip is given.
    role: str
    text: str
    clip_skip: int | None

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(list(self)).encode()).hexdigest()


@dataclass(frozen=True)
class CacheLimits:
    """How much is kept. 0: nothing."""

    memory_bytes: int = 64_000_000
    disk_bytes: int = 0


class EmbeddingCache:
    """Texts' embeddings by their key.

    Args:
        folder: of the files; made when the first is written, readable by its owner alone.
    """

    def __init__(self, limits: CacheLimits | None = None, folder: Path | None = None) -> None:
        self._limits = limits or CacheLimits()
        self._folder = folder if self._limits.disk_bytes else None
        self._kept: OrderedDict[EmbeddingKey, Tensors] = OrderedDict()
        self._bytes = 0
        self._written = 0

    @property
    def size_bytes(self) -> int:
        """Of what is in memory."""
        return self._bytes

    @property
    def room_bytes(self) -> int:
        """What texts may have, of which all are to be found again later."""
        return max(self._limits.memory_bytes, self._limits.disk_bytes if self._folder is not None else 0)

    def get(self, key: EmbeddingKey) -> Tensors | None:
        """The embedding, or None. It must not be changed."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        found = self._read(key)
        if found is not None:
            self._keep(key, found)
        return found

    def put(self, key: EmbeddingKey, tensors: Tensors) -> None:
        """Keeps an embedding; a disk that is full or read-only is no reason to fail."""
        own = tuple(tensor.detach().clone() for tensor in tensors)  # a view would keep what it is a view of
        self._keep(key, own)
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._write(self._folder, key, own)

    def _keep(self, key: EmbeddingKey, tensors: Tensors) -> None:
        size = _size(tensors)
        if size > self._limits.memory_bytes:
            return
        before = self._kept.pop(key, None)
        self._bytes += size - (_size(before) if before is not None else 0)
        self._kept[key] = tensors
        while self._bytes > self._limits.memory_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= _size(oldest)

    def _read(self, key: EmbeddingKey) -> Tensors | None:
        if self._folder is None:
            return None
        path = self._folder / _name(key)
        try:
            if not path.is_file() or path.stat().st_size > self._limits.disk_bytes:
                return None
            # Read, not mapped: a file that is cut off while it is mapped ends the process.
            tensors = load(path.read_bytes())
            found = tuple(tensors[str(number)] for number in range(len(tensors)))
            if _looks_right(found):
                with contextlib.suppress(OSError):
                    os.utime(path)  # the sweep goes by this
                return found
        except OSError:
            return None
        except Exception:  # damaged: whatever is wrong with it, it can be made again
            log.debug("%s is damaged", path, exc_info=True)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def _write(self, folder: Path, key: EmbeddingKey, tensors: Tensors) -> None:
        # Not `save_file`, whose errors do not tell a full disk from tensors that cannot be saved.
        data = save({str(number): each.cpu().contiguous() for number, each in enumerate(tensors)})
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(temporary).replace(folder / _name(key))
        finally:
            Path(temporary).unlink(missing_ok=True)
        self._written += 1
        if self._written % _SWEEP_EVERY == 1:
            _sweep(folder, self._limits.disk_bytes)


def _name(key: EmbeddingKey) -> str:
    return f"{key.digest}.safetensors"


def _looks_right(tensors: Tensors) -> bool:
    """Whether these may be a text's embedding: who can write to the folder could have put anything there."""
    return (
        1 <= len(tensors) <= 2
        and all(
            each.dtype in _DTYPES and each.ndim == ndim and len(each) == 1 and each.numel() > 0
            for each, ndim in zip(tensors, (3, 2), strict=False)
        )
        and all(bool(torch.isfinite(each).all()) for each in tensors)
    )


def _size(tensors: Tensors) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _sweep(folder: Path, limit: int) -> None:
    with os.scandir(folder) as entries:
        files = [(entry.stat(), entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
    total = 0
    for about, path in sorted(files, key=lambda each: each[0].st_mtime, reverse=True):
        total += about.st_size
        if total > limit:
            Path(path).unlink(missing_ok=True)

"""Which device renders and in which precision, and how each tells that its memory ran out."""

from __future__ import annotations

import psutil
import torch

from renderkiln.schema.errors import SettingsError

from ..memory.process import hand_back
from ..memory.words import says_out_of_memory

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Below this much system memory, attention on mps is computed in slices: diffusers' advice for Apple silicon.
ATTENTION_SLICING_BELOW = 64 * 2**30


def pick_device(name: str = "auto") -> torch.device:
    """The device to render on: mps, else cuda, else the CPU; or the one that was named.

    Raises:
        SettingsError: no such device on this machine.
    """
    there = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, available in there.items() if available))
    kind, _, index = name.partition(":")
    if kind not in there or not there[kind] or (index and not index.isdigit()):
        usable = ", ".join(kind for kind, available in there.items() if available)
        raise SettingsError(f"no device {name!r} on this machine; use auto or one of: {usable}")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise SettingsError(f"no device {name!r}: this machine has {torch.cuda.device_count()} cuda device(s)")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """float16 on an accelerator and float32 on the CPU; or the one that was named.

    Raises:
        SettingsError: no such precision.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if name not in DTYPES:
        raise SettingsError(f"no precision {name!r}; use auto or one of: {', '.join(DTYPES)}")
    return DTYPES[name]


def wants_attention_slicing(device: torch.device, memory: int | None = None) -> bool:
    """Whether to compute attention in slices here. `memory`: the system's, in bytes; measured if None."""
    total: int = psutil.virtual_memory().total if memory is None else memory
    return device.type == "mps" and total < ATTENTION_SLICING_BELOW


def give_memory_back() -> None:
    """Hands freed memory back to the system: that of the accelerator's cache of blocks, where there is one in use, and
    that of the C library's heap, which keeps most of what a dropped stage took.
    """
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    elif torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    hand_back()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and says_out_of_memory(error)

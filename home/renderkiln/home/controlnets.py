"""The ControlNets that are on this machine: folders in diffusers' layout beside the models, below the data folder.

A converted model has its ControlNets among its own stages instead; those are not looked for here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import ModelNotFoundError, did_you_mean

from .folder import DataFolder

_CONFIG = "config.json"
_CLASS = "ControlNetModel"
#: A config of diffusers is a page of text; a bigger file is something else.
_LIMIT = 1 << 20


def installed_controlnets(folder: DataFolder) -> list[str]:
    """The names of all ControlNets of this machine, sorted."""
    return sorted(name for name, _ in _candidates(folder))


def find_controlnet(folder: DataFolder, name: str) -> Path:
    """The folder of a ControlNet.

    Raises:
        ModelNotFoundError: it is not on this machine; the message holds the nearest names.
    """
    known = dict(_candidates(folder))
    if name in known:
        return known[name]
    raise ModelNotFoundError(
        f"ControlNet {name!r} is not on this machine.{did_you_mean(name, known)} "
        f"Put its folder, in diffusers' layout, into {folder.models / name}."
    )


def _candidates(folder: DataFolder) -> Iterator[tuple[str, Path]]:
    if not folder.models.is_dir():
        return
    for config in [*folder.models.glob(f"*/{_CONFIG}"), *folder.models.glob(f"*/*/{_CONFIG}")]:
        name = config.parent.relative_to(folder.models).as_posix()
        # Hidden: what is being pulled or removed. With an index above it: a part of a model.
        if not name.startswith(".") and not (config.parents[1] / "model_index.json").exists() and _is_one(config):
            yield name, config.parent


def _is_one(config: Path) -> bool:
    try:
        if config.stat().st_size > _LIMIT:
            return False
        found: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("_class_name") == _CLASS

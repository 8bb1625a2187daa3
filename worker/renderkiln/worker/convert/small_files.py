"""Puts a model's small files beside the packages, so that the folder is complete in itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..models.hub import COMPONENTS, SMALL_FOLDERS, SMALL_SUFFIXES
from ..models.weights import read_json
from ..runtimes.naming import controlnet_stage
from .source import Source, component_folder


def copy_small_files(source: Source, folder: Path, controlnet_stages: tuple[str, ...]) -> None:
    """Writes model_index.json, configs, tokenizers and scheduler; replaces what is there.

    Args:
        controlnet_stages: the ControlNets that are converted; others may have been named for their UNet's sake.
    """
    index = read_json(source.folder / "model_index.json")
    if source.checkpoint is not None:
        # Its weights hold no safety checker, whatever the repository of its configs has.
        index = {**index, "safety_checker": [None, None], "requires_safety_checker": False}
    for name in SMALL_FOLDERS:
        if (source.folder / name).is_dir():
            (folder / name).mkdir(exist_ok=True)
            for path in sorted((source.folder / name).iterdir()):
                if path.suffix in SMALL_SUFFIXES and path.is_file():
                    _copy(path, folder / name / path.name)
    for name in COMPONENTS:
        config = component_folder(source, name) / "config.json"
        if config.is_file() and (name != "safety_checker" or source.checkpoint is None):
            _copy(config, folder / name / "config.json")
    for name, path in source.controlnets:
        if controlnet_stage(name) in controlnet_stages:
            _copy(path / "config.json", folder / controlnet_stage(name) / "config.json")
    write_json(folder / "model_index.json", index)


def write_json(target: Path, values: Any) -> None:
    """Writes a small file whole or not at all; replaces what is there."""
    with _in_place_of(target) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    # copyfile follows the links of the Hub's cache, and leaves out who may write: packaged files may be read-only.
    with _in_place_of(target) as temporary:
        shutil.copyfile(source, temporary)


@contextmanager
def _in_place_of(target: Path) -> Iterator[Path]:
    """A name to write to, which becomes the target if all goes well; otherwise nothing is left of it."""
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)

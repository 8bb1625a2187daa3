"""The models that are on this machine: folders below the data folder with diffusers' small files, and the packaged
demo model.

Only names, sizes and small JSON files are looked at here; loading is the engine's.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import ModelLoadError, ModelNotFoundError, RevisionNotFoundError, did_you_mean

from .folder import DataFolder
from .origin import read_origin

DEMO_MODEL = "shapes"
_INDEX = "model_index.json"


@dataclass(frozen=True)
class InstalledModel:
    """A model folder: its name in the store, what kind of pipeline it is made for, and its size on disk in bytes.

    `revision` is the commit that it came from, where that is known.
    """

    name: str
    path: Path
    pipeline: str
    size_bytes: int
    packaged: bool
    revision: str | None = None


def installed_models(folder: DataFolder) -> list[InstalledModel]:
    """All models of this machine by name; one in the data folder hides a packaged one of the same name."""
    found = {name: _describe(name, path, packaged) for name, path, packaged in _candidates(folder)}
    return [found[name] for name in sorted(found)]


def find_model(folder: DataFolder, name: str, revision: str | None = None) -> Path:
    """The folder of a model.

    Raises:
        ModelNotFoundError: it is not on this machine (the message holds the nearest names).
        RevisionNotFoundError: it is here in another revision, or nothing is known of the folder's.
        ModelLoadError: what the folder says of its revision cannot be read.
    """
    for candidate, path, _ in reversed(list(_candidates(folder))):
        if candidate != name:
            continue
        if revision is not None:
            _check_revision(name, path, revision)
        return path
    known = [candidate for candidate, _, _ in _candidates(folder)]
    raise ModelNotFoundError(
        f"model {name!r} is not on this machine.{did_you_mean(name, known)} "
        f"`renderkiln models list` shows what is; `renderkiln models pull` gets one from the Hub, and "
        f"`renderkiln models add` takes in a folder, which then lies in {folder.models / name}."
    )


def has_torch_weights(path: Path) -> bool:
    """Whether a model has weights in diffusers' layout, beside or instead of converted stages."""
    return any((path / "unet").glob("*.safetensors"))


def engines_of(path: Path) -> set[str]:
    """The engines that a model has something for: torch, coreml, coreai. Empty: it is not known.

    Args:
        path: the folder of a model.
    """
    said = _manifests(path)
    if said is None:
        return set()  # whoever renders it will say what is wrong
    converted = {"coreai" if each.get("variant") == "coreai" else "coreml" for each in said}
    return converted | ({"torch"} if has_torch_weights(path) else set())


def fixed_sizes(path: Path) -> set[tuple[int, int]]:
    """The only sizes, (width, height), that a model can be rendered in; empty: any, or it is not known.

    Args:
        path: the folder of a model. If it has torch's weights as well, any size can be rendered.
    """
    if has_torch_weights(path):
        return set()
    try:
        return {(int(width), int(height)) for said in _manifests(path) or () for width, height in said["sizes"]}
    except (ValueError, KeyError, TypeError):
        return set()  # whoever renders it will say what is wrong


def _manifests(path: Path) -> list[dict[str, Any]] | None:
    """What the manifests of a model's converted stages say; None, if one is none."""
    try:
        said = [
            json.loads(file.read_text("utf-8")) for file in (*path.glob("manifest.json"), *path.glob("*/manifest.json"))
        ]
    except (OSError, ValueError):
        return None
    return said if all(isinstance(each, dict) for each in said) else None


def _candidates(folder: DataFolder) -> Iterator[tuple[str, Path, bool]]:
    demo = _packaged_demo()
    if demo is not None:
        yield DEMO_MODEL, demo, True
    if not folder.models.is_dir():
        return
    for index in sorted([*folder.models.glob(f"*/{_INDEX}"), *folder.models.glob(f"*/*/{_INDEX}")]):
        name = index.parent.relative_to(folder.models).as_posix()
        if not name.startswith("."):  # what is being pulled or removed
            yield name, index.parent, False


def _check_revision(name: str, path: Path, revision: str) -> None:
    origin = read_origin(path)
    if origin is None or origin.revision is None:
        raise RevisionNotFoundError(
            f"model {name!r} is here as a plain folder, of which no revision is known; {revision!r} was asked for. "
            "Leave the revision out to use what is here."
        )
    if not origin.is_revision(revision):
        asked_for = f" ({origin.asked_for})" if origin.asked_for else ""
        raise RevisionNotFoundError(
            f"model {name!r} is here in revision {origin.revision}{asked_for}; {revision!r} was asked for. Leave the "
            f"revision out to use what is here, or `renderkiln models pull {name} --revision {revision}` under another "
            "--name."
        )


def _packaged_demo() -> Path | None:
    # By its place, not by an import: the demo model belongs to the worker, which a producer never imports.
    spec = importlib.util.find_spec("renderkiln.worker")
    for root in (spec.submodule_search_locations or []) if spec else []:
        path = Path(root) / "demo" / DEMO_MODEL
        if (path / _INDEX).is_file():
            return path
    return None


def _describe(name: str, path: Path, packaged: bool) -> InstalledModel:
    try:
        index: Any = json.loads((path / _INDEX).read_text(encoding="utf-8"))
        pipeline = str(index.get("_class_name", "unknown")) if isinstance(index, dict) else "unknown"
    except (OSError, ValueError):
        pipeline = "unreadable"
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return InstalledModel(name, path, pipeline, size, packaged, _revision(path))


def _revision(path: Path) -> str | None:
    try:
        origin = read_origin(path)
    except ModelLoadError:
        return None
    return origin.revision if origin else None

"""Opens a `.mlpackage` folder: its manifest, its spec, its weight files, its sizes and its digest.

A package is a folder with a `Manifest.json` that names the items under `Data/`: one is the model's spec (a protobuf),
another a folder of weight files beside it. Everything here treats a package as a stranger's: no path in it may
lead outside of it, and what is missing or does not parse is a `ModelLoadError`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from renderkiln.schema.errors import ModelLoadError

from ..quiet import keep_torchao_quiet
from .model_files import ModelFiles

#: How a spec names the folder that the spec itself lies in.
MODEL_PATH = "@model_path/"
#: A manifest is a few hundred bytes; a bigger one is not read.
_MANIFEST_LIMIT = 1 << 20


@dataclass(frozen=True)
class Package(ModelFiles):
    """One `.mlpackage` folder whose manifest has been read.

    Its files are those of every item, relative to the folder `Data/`. Manifest.json is none of them: it only lists the
    items, under identifiers that are drawn anew at each save.
    """

    #: The spec, `model.mlmodel`.
    spec_path: Path

    @property
    def base(self) -> Path:
        """See `ModelFiles.base`."""
        return self.path / "Data"

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """The files that hold constants: all that is not the spec and lies in its `weights` folder."""
        folder = self.spec_path.parent / "weights"
        paths = (self.base / name for name in self.files)
        return tuple(path for path in paths if folder in path.parents)

    def read_spec(self) -> Any:
        """The spec as a `Model_pb2.Model`.

        Raises:
            ModelLoadError: it cannot be read, or is no Core ML spec.
        """
        return _parse_spec(self.spec_path)

    def resolve(self, name: str) -> Path:
        """The path of a weight file as a spec names it, such as `@model_path/weights/weight.bin`.

        Raises:
            ModelLoadError: the name leads outside the package, or there is no such file.
        """
        if not name.startswith(MODEL_PATH):
            raise ModelLoadError(f"{self.path}: weights are named {name!r}, which is not below {MODEL_PATH}")
        return _inside(self.path, self.spec_path.parent, name.removeprefix(MODEL_PATH))


def open_package(path: Path) -> Package:
    """Reads a package's manifest and finds its files; does not read the spec or the weights yet.

    Raises:
        ModelLoadError: it is not a package, an item is missing, or a path in it leads outside.
    """
    manifest = _read_manifest(path)
    data = path / "Data"
    try:
        entries = {str(key): str(entry["path"]) for key, entry in manifest["itemInfoEntries"].items()}
        root = entries[manifest["rootModelIdentifier"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{path}: Manifest.json does not name the package's items ({error!r})") from error
    spec_path = _inside(path, data, root)
    if not spec_path.is_file():
        raise ModelLoadError(f"{path}: its spec, {root}, is missing")
    files: set[PurePosixPath] = set()
    for name in entries.values():
        files.update(_files_below(path, data, _inside(path, data, name)))
    return Package(path=path, spec_path=spec_path, files=tuple(sorted(files)))


def model_proto() -> Any:
    """The module of Core ML's messages; the first import of coremltools takes seconds.

    Raises:
        ModelLoadError: coremltools is not installed.
    """
    keep_torchao_quiet()
    logger = logging.getLogger("coremltools")
    level = logger.level
    # It tells at each import which of Apple's frameworks it misses and which libraries it has not been tried with.
    logger.setLevel(logging.ERROR)
    try:
        from coremltools.proto import Model_pb2
    except ImportError as error:
        raise ModelLoadError("Core ML packages need coremltools: pip install 'renderkiln[worker,coreml]'") from error
    finally:
        logger.setLevel(level)
    return Model_pb2


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / "Manifest.json"
    if not path.is_dir():
        what = "is a file, not a package folder" if path.exists() else "does not exist"
        raise ModelLoadError(f"{path} {what}; a Core ML package is a folder with a Manifest.json")
    if not file.is_file():
        raise ModelLoadError(f"{path} is not a Core ML package: it has no Manifest.json")
    try:
        if file.stat().st_size > _MANIFEST_LIMIT:
            raise ModelLoadError(f"{file} is {file.stat().st_size} bytes long; that is no manifest")
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise ModelLoadError(f"{file} is not a package's manifest: it holds no object")
    return manifest


def _inside(package: Path, folder: Path, name: str) -> Path:
    """`folder / name`, which must exist and lie inside the package, symbolic links followed."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name or not parts.parts:
        raise ModelLoadError(f"{package}: the path {name!r} in it leads outside of the package")
    path = folder / parts
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelLoadError(f"{package}: {name} is missing") from error
    if not real.is_relative_to(package.resolve()):
        raise ModelLoadError(f"{package}: {name} is a link that leads outside of the package")
    return path


def _files_below(package: Path, data: Path, item: Path) -> Iterator[PurePosixPath]:
    found = [item] if item.is_file() else [path for path in item.rglob("*") if not path.is_dir()]
    for path in found:
        name = PurePosixPath(path.relative_to(data).as_posix())
        _inside(package, data, str(name))
        yield name


def _parse_spec(path: Path) -> Any:
    spec = model_proto().Model()
    try:
        spec.ParseFromString(path.read_bytes())
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # protobuf's DecodeError has moved between its versions
        raise ModelLoadError(f"{path} is not a Core ML spec, or is damaged: {error}") from error
    if spec.WhichOneof("Type") is None:
        raise ModelLoadError(f"{path} is not a Core ML spec: it holds no model")
    return spec

"""What all folders of models have alike, whoever reads them: their files, their size and their digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from renderkiln.schema.errors import ModelLoadError

_CHUNK = 1 << 20


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model's folder that decide what it is."""

    path: Path
    #: Every file, sorted, relative to `base`.
    files: tuple[PurePosixPath, ...]

    @property
    def base(self) -> Path:
        """The folder that the names of `files` begin at."""
        return self.path

    @property
    def size(self) -> int:
        """Bytes of all its files together."""
        return sum((self.base / name).stat().st_size for name in self.files)

    def sha256(self) -> str:
        """A digest over what the files are called and hold, in hex; reads all of them."""
        digest = hashlib.sha256()
        for name in self.files:
            path = self.base / name
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            feed(digest, path)
        return digest.hexdigest()


def feed(digest: Any, path: Path) -> None:
    """Reads a whole file into a digest of hashlib's."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)


def files_inside(path: Path, what: str) -> tuple[PurePosixPath, ...]:
    """Every file below a model's folder, sorted.

    Args:
        what: such a folder's name in messages: `a compiled Core ML model`.

    Raises:
        ModelLoadError: it is no folder, or a link in it leads outside of it.
    """
    if not path.is_dir():
        state = "is a file, not a folder" if path.exists() else "does not exist"
        raise ModelLoadError(f"{path} {state}; {what} is a folder")
    root = path.resolve()
    files = []
    for file in path.rglob("*"):
        if file.is_symlink() and not file.resolve().is_relative_to(root):
            raise ModelLoadError(f"{path}: {file.relative_to(path)} is a link that leads outside of the model")
        if file.is_file():
            files.append(PurePosixPath(file.relative_to(path).as_posix()))
    return tuple(sorted(files))

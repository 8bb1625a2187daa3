"""Opens an `.aimodel` folder, a Core AI asset: its files, its size, its digest. Needs no library of Apple's.

An asset holds a program in MLIR's bytecode with the weights in it, the program's SHA-256, and a `metadata.json` for
people. As with packages, everything here treats the folder as a stranger's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from renderkiln.home.json_files import read_small
from renderkiln.schema.errors import ModelLoadError

from ..model_files import ModelFiles, feed, files_inside

SUFFIX = ".aimodel"
_PROGRAM, _HASH = PurePosixPath("main.mlirb"), PurePosixPath("main.hash")
_METADATA = "metadata.json"
#: Some hundred bytes are the most that was seen.
_METADATA_LIMIT = 1 << 20
#: What every file of MLIR's bytecode begins with: `ML`, `ï` and `R`.
_MAGIC = b"ML\xefR"


@dataclass(frozen=True)
class Asset(ModelFiles):
    """One `.aimodel` folder.

    Its files are the program and its hash: `metadata.json` says when it was made, and what a system compiles of it
    belongs to that system.
    """

    def check_hash(self) -> None:
        """Compares the program with the hash beside it, where there is one; reads all of it.

        Raises:
            ModelLoadError: it is not what it was when it was written.
        """
        if _HASH not in self.files:
            return
        digest = hashlib.sha256()
        feed(digest, self.path / _PROGRAM)
        if (self.path / _HASH).read_bytes() != digest.digest():
            raise ModelLoadError(
                f"{self.path} is damaged or not complete: its program does not fit {_HASH}. Get or convert it again"
            )


def open_asset(path: Path) -> Asset:
    """Finds an asset's files.

    Raises:
        ModelLoadError: it is no folder, holds no program, its `metadata.json` cannot be read, or a link in it leads
            outside of it.
    """
    files = files_inside(path, "a Core AI asset")
    if _PROGRAM not in files:
        raise ModelLoadError(f"{path} is not a Core AI asset that can be moved between machines: it has no {_PROGRAM}")
    with (path / _PROGRAM).open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ModelLoadError(f"{path}: {_PROGRAM} is no program of Core AI")
    try:
        # Core AI gives up on an asset without it, in words that nobody understands.
        read_small(path / _METADATA, _METADATA_LIMIT, "the description of a Core AI asset")
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is not a Core AI asset: it has no {_METADATA}") from None
    return Asset(path=path, files=tuple(name for name in files if name in (_PROGRAM, _HASH)))

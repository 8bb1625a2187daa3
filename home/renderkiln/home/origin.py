"""Where a model of this machine came from, and what its files were when it came: `origin.json` in the model's folder.

Written by the model store. Folders that a person put there have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from renderkiln.schema.errors import ModelLoadError

from .json_files import read_small

FILE_NAME = "origin.json"
#: `renderkiln convert` leaves this one, which names the revision too.
_MANIFEST = "manifest.json"
_LIMIT = 8 << 20
#: So much of a commit's name says which one is meant.
_SHORTEST_COMMIT = 7


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """What a file was when it came."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Origin(_Record):
    """Where a model came from."""

    schema_version: Literal[1] = 1
    #: Of the Hub; None for a folder of this machine.
    repository: str | None = None
    #: The commit.
    revision: str | None = None
    #: The branch or tag that was asked for.
    asked_for: str | None = None
    #: The repository of the small files, where that is another one.
    original: str | None = None
    original_revision: str | None = None
    #: By the path within the model's folder, with `/`.
    files: Mapping[str, FileRecord] = Field(default_factory=dict)

    def is_revision(self, revision: str) -> bool:
        """Whether this is what a revision means: the commit, its first letters, or the branch or tag it came as."""
        if self.revision is None:
            return False
        is_short = len(revision) >= _SHORTEST_COMMIT and self.revision.startswith(revision)
        return revision in (self.revision, self.asked_for) or is_short


def read_origin(folder: Path) -> Origin | None:
    """What is known of a model folder's origin; None where nothing is.

    Raises:
        ModelLoadError: there is a record, and it is not one of ours.
    """
    path = folder / FILE_NAME
    values = _read(path)
    if values is None:
        manifest = _read(folder / _MANIFEST)
        revision = manifest.get("revision") if isinstance(manifest, dict) else None
        return Origin(revision=revision) if isinstance(revision, str) else None
    try:
        return Origin.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise ModelLoadError(f"{path} is not a record that this version reads: {where}: {first['msg']}") from error


def _read(path: Path) -> Any:
    try:
        return read_small(path, _LIMIT, "what it should be")
    except FileNotFoundError:
        return None

"""A store in a folder: a temporary file beside the picture, flushed and renamed, then the folder flushed."""

from __future__ import annotations

import errno
import os
import re
import secrets
from pathlib import Path
from typing import IO

#: How half-written files are called: hidden, and by nobody else.
_PART = re.compile(r"\..{1,80}\.[0-9a-f]{16}\.part")
#: What folders answer that cannot be flushed, on some network file systems.
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM}


def part_name(name: str) -> str:
    """A name for the half-written file of `name`, another one each time."""
    head = name.encode("utf-8", "replace")[:80].decode("utf-8", "ignore")
    return f".{head}.{secrets.token_hex(8)}.part"


def is_part(name: str) -> bool:
    """Whether a file's name is one of `part_name`'s."""
    return _PART.fullmatch(name) is not None


class Folder:
    """A folder on this machine; made on the first write, with what is missing above it."""

    def __init__(self, path: str) -> None:
        # Not resolve(): a person who gives a link wants to see the link's name in results.
        self.folder: Path | None = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100
        self._path = self.folder
        self.url = str(self.folder)

    def write(self, relative: str, data: bytes) -> None:
        path = self._path / relative
        _make_folders(path.parent)
        part = path.parent / part_name(path.name)
        try:
            # "x": never through a link that someone laid there. Permissions are the umask's.
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def size(self, relative: str) -> int | None:
        path = self._path / relative
        try:
            return path.stat().st_size if path.is_file() else None
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, relative: str) -> IO[bytes]:
        return (self._path / relative).open("rb")

    def remove(self, relative: str) -> None:
        (self._path / relative).unlink(missing_ok=True)

    def clean(self, before: float, dry_run: bool) -> int:
        removed = 0
        for folder, _, names in os.walk(self._path):
            for path in (Path(folder, name) for name in names if is_part(name)):
                try:
                    if path.lstat().st_mtime < before:
                        if not dry_run:
                            path.unlink()
                        removed += 1
                except FileNotFoundError:  # another cleaner, or its writer, was quicker
                    continue
        return removed


def _make_folders(folder: Path) -> None:
    missing = []
    while not folder.is_dir() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        _sync_folder(each.parent)  # else a power cut may lose the folder with all that is in it


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(handle)

"""A store behind fsspec: object stores, where a put is whole; servers, where a rename makes it so."""

from __future__ import annotations

import contextlib
import re
from typing import IO, TYPE_CHECKING, Any, cast

import fsspec.core
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.spec import AbstractFileSystem

from renderkiln.schema.errors import StoreError

from .folder import is_part, part_name

if TYPE_CHECKING:
    from pathlib import Path

#: Protocols whose put is whole or not at all; a rename there would be a copy.
_PUT_IS_WHOLE = {"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "ocilake", "oss"}
#: What to install for the protocols that people use; fsspec's own message serves for the others.
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "adl": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "webdav": "webdav4[fsspec]",
    "hdfs": "pyarrow",
    "oss": "ossfs",
}


class Remote:
    """A place that an fsspec URL names."""

    def __init__(self, url: str) -> None:
        self.folder: Path | None = None
        self.url = without_password(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            package = _PACKAGES.get(re.split("::|://", url, maxsplit=1)[0])
            what_to_do = f"run `pip install {package}`" if package else str(error)
            raise StoreError(f"store {self.url}: a package is not installed; {what_to_do}") from None
        except Exception as error:  # each file system has errors of its own
            said = str(error).replace(url, self.url) or type(error).__name__
            raise StoreError(f"store {self.url} cannot be opened: {said}") from None
        # A `dir::` file system begins at the folder already; fsspec names the folder once more beside it.
        is_rooted = isinstance(self._fs, DirFileSystem)
        self._root = "" if is_rooted else str(root).rstrip("/")
        self._prefix = "" if is_rooted else self._root + "/"
        protocol: str | tuple[str, ...] = self._fs.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        # A file system that has no `mv` of its own copies and removes: no better than a plain put.
        self._renames = not names & _PUT_IS_WHOLE and type(self._fs).mv is not AbstractFileSystem.mv

    def write(self, relative: str, data: bytes) -> None:
        path = self._path(relative)
        if not self._renames:
            self._fs.pipe_file(path, data)
            return
        folder, slash, name = path.rpartition("/")
        part = f"{folder}{slash}{part_name(name)}"
        self._fs.makedirs(folder, exist_ok=True)
        try:
            self._fs.pipe_file(part, data)
            self._move(part, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(part)
            raise

    def size(self, relative: str) -> int | None:
        path = self._path(relative)
        self._fs.invalidate_cache(path.rpartition("/")[0])  # others write there too
        try:
            info: dict[str, Any] = self._fs.info(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def open(self, relative: str) -> IO[bytes]:
        return cast("IO[bytes]", self._fs.open(self._path(relative), "rb"))

    def remove(self, relative: str) -> None:
        self._fs.rm_file(self._path(relative))

    def clean(self, before: float, dry_run: bool) -> int:
        if not self._renames or not self._fs.exists(self._root):
            return 0
        removed = 0
        for path in self._fs.find(self._root):
            if is_part(path.rsplit("/", 1)[-1]):
                # A server that does not tell times, or whose file is gone by now, keeps it.
                with contextlib.suppress(NotImplementedError, FileNotFoundError):
                    if self._fs.modified(path).timestamp() < before:
                        if not dry_run:
                            self._fs.rm_file(path)
                        removed += 1
        return removed

    def _path(self, relative: str) -> str:
        return self._prefix + relative

    def _move(self, part: str, path: str) -> None:
        try:
            self._fs.mv(part, path)
        except Exception:
            # SMB and some FTP servers do not rename onto a file that is there.
            if not self._fs.exists(path) or not self._fs.exists(part):
                raise
            self._fs.rm_file(path)
            self._fs.mv(part, path)


def without_password(url: str) -> str:
    """The URL as it may be shown and recorded: `sftp://me:secret@host/x` without `:secret`."""
    return re.sub(r"(://[^/:@]*):[^/]*@", r"\1@", url)

"""Where pictures go: a folder, or any other place that fsspec can write to.

A picture is there whole or not at all. How that is done differs: `folder` and `remote` each know one way.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from renderkiln.schema.errors import StoreError

from .folder import Folder
from .trouble import explained

__all__ = ["Store", "StoredFile", "named_store"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """A file that is in the store, whole."""

    #: An absolute path in a folder; else an fsspec URL, without a password.
    url: str
    sha256: str
    #: Bytes.
    size: int


class Place(Protocol):
    """What a store needs of a place; names are checked already, failures are what the system raises."""

    #: What the place is called from outside, without a password.
    url: str
    #: Where it is on this machine's disks, if it is.
    folder: Path | None

    def write(self, relative: str, data: bytes) -> None:
        """Writes a file, whole or not at all, in the place of one that is there."""

    def size(self, relative: str) -> int | None:
        """Bytes of a file; None: it is not there."""

    def open(self, relative: str) -> IO[bytes]:
        """Opens a file to be read."""

    def remove(self, relative: str) -> None:
        """Removes a file."""

    def clean(self, before: float, dry_run: bool) -> int:
        """Removes, or only counts, files left half-written, last changed before then (seconds since 1970)."""


#: Protocols of stores that others may name, in a job or a result. fsspec knows many more: some follow URLs
#: that stand in a file which the URL names, and render templates in it.
_NAMED = frozenset(
    {"file", "local", "memory", "sftp", "ssh", "smb", "webdav", "ftp", "hdfs", "s3", "s3a", "gs", "gcs"}
    | {"abfs", "abfss", "az", "adl", "oci", "ocilake", "oss"}
)


def named_store(place: str) -> Store:
    """The store that a job or a result out of Redis names: a folder, or a URL of a usual kind.

    Raises:
        StoreError: it is of another kind, or a chain of several.
    """
    protocol, found, _ = place.partition("://")
    if "::" in place or (found and protocol not in _NAMED):
        raise StoreError(
            f"a job may not name {place[:80]!r} as its store: of URLs, only {', '.join(sorted(_NAMED))} are taken from "
            "the queue. A worker may have another as its own (--out)."
        )
    return Store(place)


class Store:
    """A place for pictures, a folder, or an fsspec URL such as `s3://bucket/pictures`.

    Methods may be called from several threads and processes at once. Every failure is a `StoreError` that
    says what happened, to what, and what to do. A password in the URL is used and never shown.
    """

    def __init__(self, place: str | Path) -> None:
        """Neither makes nor writes anything yet; `check` does.

        Raises:
            StoreError: the URL names a protocol that nothing knows, or whose package is not installed.
        """
        text = os.fspath(place)
        if not text or "\x00" in text:
            raise StoreError("the store's name is empty or holds a NUL; give a folder or an fsspec URL")
        for prefix in ("file://", "local://"):
            text = text.removeprefix(prefix)
        if "://" not in text and "::" not in text:
            self._place: Place = Folder(text)
        else:
            from .remote import Remote  # fsspec is only loaded where it is needed

            self._place = Remote(text)

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def url(self) -> str:
        """What the store is called: an absolute path, or the URL without a password."""
        return self._place.url

    @property
    def folder(self) -> Path | None:
        """The folder, where the store is one on this machine."""
        return self._place.folder

    def url_of(self, relative: str) -> str:
        """What a file of this relative name is called from outside. Raises StoreError for a bad name."""
        return self._root() + _checked(relative)

    def put(self, relative: str, data: bytes) -> StoredFile:
        """Writes or replaces a file, whole or not at all; once this returns, it outlives a power cut.

        Raises:
            StoreError: it could not be written; nothing of it is left, and what was there before still is.
        """
        stored = StoredFile(self.url_of(relative), hashlib.sha256(data).hexdigest(), len(data))
        with explained(f"writing {stored.url}", self.folder):
            self._place.write(relative, data)
        return stored

    def exists(self, url: str) -> bool:
        """Whether a file is there. StoreError: that cannot be known, or it is not of this store."""
        return self.matches(url)

    def matches(self, url: str, *, size: int | None = None, sha256: str | None = None) -> bool:
        """Whether a file is there, with this size in bytes and this SHA-256, where they are given."""
        relative = self._relative(url)
        with explained(f"looking for {url}", self.folder):
            found = self._place.size(relative)
            if found is None or (size is not None and found != size):
                return False
            if sha256 is None:
                return True
            summed = hashlib.sha256()
            with self._place.open(relative) as file:
                while chunk := file.read(_CHUNK):
                    summed.update(chunk)
            return summed.hexdigest() == sha256

    def read(self, url: str) -> bytes:
        """The bytes of a file. Raises StoreError if it is missing, unreadable, or not of this store."""
        relative = self._relative(url)
        with explained(f"reading {url}", self.folder), self._place.open(relative) as file:
            return bytes(file.read())

    def check(self) -> None:
        """Writes, reads and removes a small file: a store that is no use is found out before a night of work.

        Raises:
            StoreError: saying what fails and what to do.
        """
        name, data = f"renderkiln-probe-{secrets.token_hex(8)}", b"renderkiln\n"
        stored = self.put(name, data)
        try:
            given_back = self.read(stored.url)
        finally:
            with explained(f"removing {stored.url}", self.folder):
                self._place.remove(name)
        if given_back != data:
            raise StoreError(f"{self.url} does not give back what was written to it; use another store")

    def clean(self, older_than: float, *, dry_run: bool = False) -> int:
        """Removes what killed writers left: our half-written files, not touched for `older_than` seconds.

        Returns how many; with `dry_run`, how many there are. A living writer's file is seconds old, so an hour is safe.
        """
        with explained(f"cleaning {self.url}", self.folder):
            return self._place.clean(time.time() - older_than, dry_run)

    def _root(self) -> str:
        return self.url if self.url.endswith("/") else self.url + "/"

    def _relative(self, url: str) -> str:
        if not url.startswith(self._root()):
            raise StoreError(f"{url} is not in the store {self.url}")
        return _checked(url[len(self._root()) :])


def _checked(relative: str) -> str:
    """A name that stays inside on any file system: no part is hidden (ours are), leads up, or is empty."""
    for part in relative.split("/"):
        is_odd = any(char in '\\:*?"<>|' or ord(char) < 32 or ord(char) == 127 for char in part)
        if not part or part.startswith(".") or is_odd or len(part.encode("utf-8", "replace")) > 255:
            raise StoreError(f"{relative!r} is not a name for a file in a store; use one such as 'batch/1.png'")
    return relative

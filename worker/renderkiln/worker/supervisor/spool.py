"""Pictures whose store is away, kept on this machine's disk until it is back.

Each is one file, there whole or not at all: a line with the SHA-256 of all that follows, a line of JSON that says
whose picture it is and where it belongs, and the bytes to be written there. What does not match its SHA-256 is set
aside and never delivered. Several workers with one data folder share one spool.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from renderkiln.home.checkup import size
from renderkiln.home.store import Store
from renderkiln.home.store.trouble import explained
from renderkiln.schema.errors import StoreError
from renderkiln.schema.jobs import ImageResult, JobId
from renderkiln.schema.spec import Frozen

log = logging.getLogger("renderkiln.supervisor")

#: What a file begins with; another form gets another number.
_MARK = b"renderkiln spool 1 "
_HEAD = len(_MARK) + 64 + 1
#: Bytes of a file that are read: more than any picture has.
_LARGEST = 1 << 30
_NAME = re.compile(r"([0-9a-f]{32})\.(\d{1,5})\.([0-9a-f]{64})\.(png|jpg|webp)")
_ASIDE = "damaged"


class Parcel(Frozen):
    """A picture on its way: whose it is, and where it belongs."""

    job_id: JobId
    execution_id: str
    #: As the job names it; None: the worker's own.
    store: str | None
    #: Of the file, within the store.
    name: str
    image: ImageResult
    #: The file is in the store, and only the ledger does not know yet.
    is_stored: bool = False


@dataclass(frozen=True)
class Kept:
    """A file of the spool, by what its name says."""

    path: Path
    job_id: str
    k: int
    digest: str
    suffix: str


class Spool:
    """The spool of a data folder. May be used from several threads and processes at once.

    Args:
        limit: bytes that it may hold; 0: nothing.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._store = Store(folder)

    def add(self, parcel: Parcel, data: bytes) -> None:
        """Keeps a picture; once this returns, it outlives a power cut.

        Raises:
            StoreError: there is no room for it, or it could not be written.
        """
        body = parcel.model_dump_json().encode() + b"\n" + data
        used = self.used()
        if used + _HEAD + len(body) > self._limit:
            raise StoreError(
                f"the spool {self._folder} holds {size(used)} and may hold {size(self._limit)} (setting spool)",
                is_full=True,
            )
        image = parcel.image
        name = f"{parcel.job_id}.{image.k}.{image.digest}{Path(parcel.name).suffix}"
        self._store.put(name, _MARK + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def pictures(self) -> list[Kept]:
        """What is kept, the oldest first. Raises StoreError where that cannot be seen."""
        found = []
        for path, changed, _ in _look(self._folder):
            matched = _NAME.fullmatch(path.name)
            if matched is not None:
                job_id, k, digest, suffix = matched.groups()
                found.append((changed, Kept(path, job_id, int(k), digest, suffix)))
        return [kept for _, kept in sorted(found, key=lambda each: (each[0], each[1].k))]

    def read(self, kept: Kept) -> tuple[Parcel, bytes] | None:
        """A picture, compared with its SHA-256s; None where it is not there any more, or was damaged and set aside."""
        try:
            if kept.path.stat().st_size > _LARGEST:
                raise ValueError("it is larger than any picture")
            content = kept.path.read_bytes()
            body = content[_HEAD:]
            if content[:_HEAD] != _MARK + hashlib.sha256(body).hexdigest().encode() + b"\n":
                raise ValueError("its SHA-256 is another one")
            head, _, data = body.partition(b"\n")
            parcel = Parcel.model_validate_json(head)
            image = parcel.image
            if (parcel.job_id, image.k, image.digest) != (kept.job_id, kept.k, kept.digest):
                raise ValueError("it is another picture than its name says")
            if not parcel.is_stored and hashlib.sha256(data).hexdigest() != image.sha256:
                raise ValueError("the picture's SHA-256 is another one")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._set_aside(kept, error)
            return None
        return parcel, data

    def remove(self, kept: Kept) -> None:
        """Forgets a picture, which is where it belongs by now."""
        kept.path.unlink(missing_ok=True)

    def forget(self, job_id: str) -> None:
        """Forgets the pictures of a job that nobody wants any more."""
        with contextlib.suppress(StoreError, OSError):  # then they arrive late, and do no harm
            for kept in self.pictures():
                if kept.job_id == job_id:
                    self.remove(kept)

    def used(self) -> int:
        """Bytes that it holds, with what is damaged or half-written."""
        return sum(taken for folder in (self._folder, self._folder / _ASIDE) for _, _, taken in _look(folder))

    def has_room(self) -> bool:
        """Whether the pictures of another job are worth rendering while the store is away."""
        try:
            return self.used() < 0.9 * self._limit
        except StoreError:
            return False

    def clean(self) -> None:
        """Removes what killed writers left half-written."""
        if self._folder.is_dir():
            self._store.clean(older_than=3600)

    def _set_aside(self, kept: Kept, why: Exception) -> None:
        said = f"{len(why.errors())} fields are wrong" if isinstance(why, ValidationError) else str(why)
        aside = self._folder / _ASIDE
        log.error("%s in the spool is damaged (%s): it is not delivered, and kept in %s", kept.path.name, said, aside)
        try:
            aside.mkdir(exist_ok=True)
            kept.path.replace(aside / kept.path.name)
        except OSError as error:
            log.error("it could not be moved there: %s", error)


def _look(folder: Path) -> Iterator[tuple[Path, float, int]]:
    """The files in a folder, with when they were last changed, and their bytes."""
    with explained(f"reading {folder}", folder):
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            try:
                about = path.lstat()
            except FileNotFoundError:  # another worker delivered it just now
                continue
            if stat.S_ISREG(about.st_mode):
                yield path, about.st_mtime, about.st_size

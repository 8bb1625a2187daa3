"""Fetches files of the Hub into a folder: goes on where it broke, and takes nothing that is not what the Hub has.

A file is received under another name and gets its own once its digest is right. huggingface_hub gives up what it has of
a file when its process ends, which for a UNet of gigabytes is too much; so the bytes are received here, over its
session, with its headers and its errors.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from renderkiln.home.origin import FileRecord
from renderkiln.schema.errors import CorruptFileError, DiskFullError, ModelFetchError

from .hub import HubFile, errors_as_ours, is_network, library

#: Marks what has not arrived whole.
PART_SUFFIX = ".part"
_CHUNK = 1 << 20
#: Answers after which the Hub, asked again, may give what was asked for; the library waits in between.
_PASSING = (408, 429, 500, 502, 503, 504)
#: Seconds to wait, one after the other, while the connection cannot be made or brings nothing.
WAITS = (1.0, 2.0, 4.0, 8.0)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Wanted:
    """A file to fetch."""

    repository: str
    commit: str
    file: HubFile
    #: Where it goes, below the folder.
    target: PurePosixPath


def bytes_to_fetch(wanted: Sequence[Wanted], folder: Path) -> int:
    """How much of the files has not arrived yet."""
    return sum(each.file.size_bytes - min(each.file.size_bytes, _arrived(folder / each.target)) for each in wanted)


def fetch(wanted: Sequence[Wanted], folder: Path, on_bytes: Callable[[int], None]) -> dict[str, FileRecord]:
    """Fetches what is not there yet.

    Args:
        folder: what has arrived in it stays there whatever happens, so that the next call goes on.
        on_bytes: is told how many more bytes of the files are there; the number is negative where bytes that had been
            counted had to be given up.

    Returns:
        Sizes and SHA-256 of all files, by their paths below the folder.

    Raises:
        ModelFetchError: the Hub cannot be reached or refuses, or a file is not what it says (CorruptFileError).
        DiskFullError: there is no room.
    """
    records = {}
    for each in wanted:
        with full_disk_as_ours(folder):
            records[each.target.as_posix()] = _fetch_one(each, folder / each.target, on_bytes)
    return records


@contextmanager
def full_disk_as_ours(folder: Path) -> Iterator[None]:
    """Turns the system's error of a disk without room into a DiskFullError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFullError(f"the disk of {folder} is full; make room, and run the command again") from error


def _fetch_one(wanted: Wanted, target: Path, on_bytes: Callable[[int], None]) -> FileRecord:
    file = wanted.file
    if target.exists():
        record = record_of(target)
        if _is_right(file, record, target):
            on_bytes(file.size_bytes)
            return record
        target.unlink()  # of another commit of the original, or damaged since
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(target)
    if part.exists() and part.stat().st_size > file.size_bytes:
        part.unlink()
    with part.open("ab") as received, errors_as_ours(wanted.repository, wanted.commit):
        on_bytes(received.tell())
        _receive_all(wanted, received, on_bytes)
    record = record_of(part)
    if not _is_right(file, record, part):
        part.unlink()
        on_bytes(-record.size_bytes)
        raise CorruptFileError(
            f"{file.name} of {wanted.repository} did not arrive as the Hub has it: its digest is another. It was "
            "thrown away; run the command again, and if that does not help, look for a proxy that changes what passes"
        )
    part.replace(target)
    return record


def _receive_all(wanted: Wanted, received: BinaryIO, on_bytes: Callable[[int], None]) -> None:
    waits = iter(WAITS)
    while (start := received.tell()) < wanted.file.size_bytes:
        try:
            _receive(wanted, received, on_bytes)
        except Exception as error:
            if not is_network(error):
                raise
            # As long as each try brings something, the next one goes on from there at once.
            wait = 0.0 if received.tell() > start else next(waits, None)
            if wait is None:
                raise
            time.sleep(wait)
            continue
        if received.tell() <= start:
            raise ModelFetchError(f"the Hub gives {wanted.file.name} of {wanted.repository} an end before its size")


def _receive(wanted: Wanted, received: BinaryIO, on_bytes: Callable[[int], None]) -> None:
    """Receives from where the file ends, until its size or until the connection breaks."""
    hub, start = library(), received.tell()
    url = hub.hf_hub_url(wanted.repository, wanted.file.name, revision=wanted.commit, endpoint=hub.constants.ENDPOINT)
    # Compressed answers have no ranges that fit the file's bytes.
    headers = {**hub.utils.build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with hub.utils.http_stream_backoff(
        "GET",
        url,
        headers=headers,
        timeout=hub.constants.HF_HUB_DOWNLOAD_TIMEOUT,
        retry_on_exceptions=(),  # it could not begin again in mid-file
        retry_on_status_codes=_PASSING,
    ) as response:
        hub.utils.hf_raise_for_status(response)
        if start and response.status_code != 206:  # a server that knows no ranges begins at the beginning
            received.seek(0)
            received.truncate()
            on_bytes(-start)
        left = wanted.file.size_bytes - received.tell()
        for chunk in response.iter_bytes():  # as they come: of a broken connection nothing is to be lost
            received.write(chunk[:left])
            on_bytes(len(chunk[:left]))
            left -= len(chunk)
            if left < 0:
                raise CorruptFileError(f"the Hub gives more of {wanted.file.name} than its size")


def _is_right(file: HubFile, record: FileRecord, path: Path) -> bool:
    if record.size_bytes != file.size_bytes:
        return False
    return record.sha256 == file.sha256 if file.sha256 else _git_digest(path) == file.blob


def record_of(path: Path) -> FileRecord:
    """A file's size and SHA-256; reads it."""
    return FileRecord(size_bytes=path.stat().st_size, sha256=_digest(path, hashlib.sha256()))


def _git_digest(path: Path) -> str:
    """What git, and the Hub's ETag, call a small file by."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    return _digest(path, digest)


def _digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return str(digest.hexdigest())


def _part(target: Path) -> Path:
    return target.with_name(target.name + PART_SUFFIX)


def _arrived(target: Path) -> int:
    for path in (target, _part(target)):
        if path.exists():
            return path.stat().st_size
    return 0

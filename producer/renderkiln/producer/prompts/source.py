"""Where the bytes of a list come from: a file that must not change, or a copy of a stream."""

from __future__ import annotations

import io
import os
import stat
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from .model import Where

#: Bytes of a line: room for two prompts of the greatest length with every character escaped.
MAX_LINE = 1 << 20
#: Bytes of what is copied from standard input or a pipe.
MAX_COPY = 1 << 30
_BLOCK = 1 << 16
_UTF8_MARK = b"\xef\xbb\xbf"


class Source:
    """The bytes of a list, which can be read as often as wanted and are the same each time."""

    def __init__(self, name: str, path: Path, folder: Path, *, copied: bool) -> None:
        #: What errors call it.
        self.name = name
        #: The folder that image paths are relative to.
        self.folder = folder
        self._path = path
        self._copied = copied
        self._identity = _identity(path.stat())

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes, from the start.

        Raises:
            PromptListError: they cannot be read, or are not those that were there at first; the latter is
            also
                looked for at the end, since a list may be longer than what is read of it at a time.
        """
        try:
            with self._path.open("rb") as stream:
                self._must_be_unchanged(stream)
                yield stream
                self._must_be_unchanged(stream)
        except OSError as error:
            raise Where(self.name).error(f"cannot be read: {error.strerror or error}") from error

    def _must_be_unchanged(self, stream: BinaryIO) -> None:
        if not self._copied and _identity(os.fstat(stream.fileno())) != self._identity:
            raise Where(self.name).error("the list changed while it was being read; start again when it is complete")


def open_source(path: str, *, stdin: TextIO | None = None) -> Source:
    """The source of a list that is a file, a pipe, or `-` for standard input.

    Raises:
        PromptListError: there is no such file, it is a folder, or it cannot be read.
    """
    if path == "-":
        return _copy("-", _binary(stdin or sys.stdin), Path())
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise Where(path).error("is a folder; expected a file with a list of prompts")
        if stat.S_ISREG(mode):
            return Source(path, Path(path), Path(path).parent, copied=False)
        with Path(path).open("rb") as stream:
            return _copy(path, stream, Path())
    except FileNotFoundError:
        raise Where(path).error("no such file; a name that ends as lists do is never taken for a prompt") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Where(path).error(f"cannot be read: {reason or error}") from None


def _binary(stream: TextIO) -> BinaryIO:
    binary = getattr(stream, "buffer", None)
    if binary is not None:
        return binary  # type: ignore[no-any-return]
    return io.BytesIO(stream.read().encode("utf-8", "surrogateescape"))


def _copy(name: str, stream: BinaryIO, folder: Path) -> Source:
    """Keeps what comes once in a temporary file, which goes when the source does."""
    handle, path = tempfile.mkstemp(prefix="renderkiln-list-")
    try:
        with os.fdopen(handle, "wb") as copy:
            total = 0
            while block := stream.read(_BLOCK):
                total += len(block)
                if total > MAX_COPY:
                    raise Where(name).error(f"more than {MAX_COPY >> 20} MiB; put so long a list into a file")
                copy.write(block)
        source = Source(name, Path(path), folder, copied=True)
    except BaseException:
        _remove(path)
        raise
    weakref.finalize(source, _remove, path)
    return source


def _remove(path: str) -> None:
    with suppress(OSError):
        Path(path).unlink()


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a list with their numbers from 1, line ends kept, one in memory at a time.

    Raises:
        PromptListError: a line is too long, holds a NUL, or is not UTF-8.
    """
    number = 0
    while raw := stream.readline(MAX_LINE + 1):
        number += 1
        if len(raw) > MAX_LINE:
            raise Where(name, number, 1).error(f"the line is longer than {MAX_LINE >> 20} MiB")
        if number == 1:
            raw = _unmarked(raw, name)
        yield number, decode(raw, name, number)


def whole(stream: BinaryIO, name: str, limit: int, advice: str) -> str:
    """All of a list as text, where it is no longer than `limit` bytes. Raises like `lines`."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise Where(name).error(f"larger than {limit >> 20} MiB; {advice}")
    return decode(_unmarked(data, name), name, 1)


def decode(raw: bytes, name: str, line: int) -> str:
    """Text from bytes that start at `line`, column 1. Raises PromptListError where they are no UTF-8."""
    bad, why = raw.find(b"\0"), "a NUL character; expected text"
    text = ""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        if not 0 <= bad < error.start:
            bad, why = error.start, f"byte 0x{raw[error.start]:02x} is not UTF-8; save the list as UTF-8"
    if bad < 0:
        return text
    before = raw[:bad]
    start = before.rfind(b"\n") + 1
    raise Where(name, line + before.count(b"\n"), len(before[start:].decode()) + 1).error(why)


def _unmarked(raw: bytes, name: str) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Where(name, 1, 1).error("the list is UTF-16; save it as UTF-8")
    return raw.removeprefix(_UTF8_MARK)

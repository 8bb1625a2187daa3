"""Keeps what Core ML compiled, at paths that stay the same.

The system's own cache, of what it makes of a compiled model for the Neural Engine, goes by the model's path: a model
that is compiled to a new temporary folder at each start takes minutes each time. So each package is compiled once for
each compute unit and build of the system, into a folder named by these three.

Two kinds of lock, both the system's, so that they end with the process that holds them: one for the whole cache, which
whoever writes holds, and one in each entry, shared by those that have it loaded and exclusive for removing it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from renderkiln.schema.errors import ModelLoadError

from .failures import disk_full
from .policy import Entry, to_remove
from .system import ComputeUnit, system_build

FOLDER = "compiled"
#: The compiled model in an entry's folder. Core ML goes by the ending.
MODEL = "model.mlmodelc"
#: How much is kept where nothing else is said: a few models of Stable Diffusion XL's size.
MAX_BYTES = 32_000_000_000
_RECORD = "entry.json"
#: Locked while the entry is loaded; when it was last modified says when the entry was last used.
_LOCK = "lock"
_MAKING, _TRASH = ".making-", ".trash-"
_RECORD_LIMIT = 8 << 20


class _Record(BaseModel):
    """`entry.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    compute_unit: ComputeUnit
    build: str
    #: What compiling took.
    seconds: float = Field(ge=0)
    #: Each of the compiled model's files, with its bytes.
    files: dict[str, int]

    @property
    def size_bytes(self) -> int:
        return sum(self.files.values())


@dataclass(frozen=True)
class Key:
    """What a compiled model is of and for; the build of the system is the cache's to know."""

    #: Of the package, as the manifest says it.
    sha256: str
    compute_unit: ComputeUnit
    #: The package's path, for people.
    source: str


class Lease:
    """The right to have an entry loaded: nobody removes it meanwhile. Ends with `release`, or when it is forgotten."""

    def __init__(self, path: Path, handle: int, compiled_in: float | None = None) -> None:
        """Use `CompileCache.lease`."""
        #: The compiled model.
        self.path = path
        #: The seconds that compiling took just now; None where the entry was there.
        self.compiled_in = compiled_in
        self._finish = weakref.finalize(self, os.close, handle)

    def release(self) -> None:
        """Ends it; may be called again."""
        self._finish()


class CompileCache:
    """The compiled models of one data folder."""

    def __init__(self, root: Path, *, build: str | None = None, max_bytes: int = MAX_BYTES) -> None:
        """Touches nothing yet.

        Args:
            root: the cache's own folder, such as `<data folder>/compiled`.
            build: of the system; this one's unless told.
            max_bytes: what may be kept; more only while it is in use.
        """
        self.root, self._max_bytes = root, max_bytes
        self.build = build or system_build()

    def lease(self, key: Key, compile_to: Callable[[Path], None]) -> Lease:
        """The compiled model for a key; where there is none, or a damaged one, it is compiled now.

        A process that asks for what another one is compiling waits for it.

        Args:
            compile_to: makes the compiled model's folder at this path, which does not exist yet.

        Raises:
            ModelLoadError: there is no room, or the cache cannot be written; and what `compile_to` raises.
        """
        name = self._name(key)
        try:
            found = self._take(name)
            if found is not None:
                return found
            with self._writing():
                # Another process may have made it while we waited to write.
                found = self._take(name) or self._make(name, key, compile_to)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise disk_full(key.source) from error
            raise ModelLoadError(f"the compile cache {self.root} cannot be written: {error}") from error
        if found.compiled_in is not None:
            with suppress(OSError):  # what could not be removed now is tried again with the next entry
                self.clean(max_bytes=self._max_bytes)
        return found

    def forget(self, key: Key) -> None:
        """Drops an entry that Core ML refuses, whatever its sizes say; whoever has it loaded keeps its files."""
        with self._writing():
            self._drop(self._name(key))

    def entries(self) -> list[Entry]:
        """What is there, by last use, latest first."""
        if not self.root.is_dir():
            return []
        found = [self._entry(path) for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        return sorted(found, key=lambda entry: (-entry.last_use, entry.name))

    def clean(
        self, *, older_seconds: float | None = None, max_bytes: int | None = None, dry_run: bool = False
    ) -> list[Entry]:
        """Removes what `policy.to_remove` says, and what processes that were killed left behind.

        Returns:
            What was removed, or would be; an entry that was loaded meanwhile stays and is not in it.
        """
        going = to_remove(
            self.entries(), build=self.build, now=time.time(), older_seconds=older_seconds, max_bytes=max_bytes
        )
        if dry_run or not self.root.is_dir():
            return going
        with self._writing():
            return [entry for entry in going if self._remove(entry.name)]

    def remove(self, name: str) -> bool:
        """Removes the entry of this name unless a process has it loaded; whether it did."""
        if name not in {entry.name for entry in self.entries()}:
            return False
        with self._writing():
            return self._remove(name)

    def _name(self, key: Key) -> str:
        return f"{key.sha256}.{key.compute_unit}.{self.build}"

    def _remove(self, name: str) -> bool:
        handle = self._open_lock(name)
        if handle is None:
            return self._drop(name)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._drop(name)
        except BlockingIOError:
            return False
        finally:
            os.close(handle)

    def _make(self, name: str, key: Key, compile_to: Callable[[Path], None]) -> Lease:
        self._drop(name)  # damaged, or it would have been taken
        folder = Path(tempfile.mkdtemp(dir=self.root, prefix=_MAKING))
        try:
            began = time.monotonic()
            compile_to(folder / MODEL)
            seconds = time.monotonic() - began
            files = _files(folder / MODEL)
            if not files:
                raise ModelLoadError(f"Core ML compiled {key.source} and left nothing")
            record = _Record(
                source=key.source,
                sha256=key.sha256,
                compute_unit=key.compute_unit,
                build=self.build,
                seconds=seconds,
                files=files,
            )
            with (folder / _RECORD).open("w", encoding="utf-8") as file:
                file.write(json.dumps(record.model_dump(mode="json"), indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            (folder / _LOCK).touch()
            folder.rename(self.root / name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        made = self._take(name)
        if made is None:
            raise ModelLoadError(f"{self.root / name} was removed as soon as it was compiled")
        made.compiled_in = seconds
        return made

    def _take(self, name: str) -> Lease | None:
        """A lease on an entry that is whole."""
        while (handle := self._open_lock(name)) is not None:
            try:
                # Waits only while somebody looks whether it is in use, or removes it.
                fcntl.flock(handle, fcntl.LOCK_SH)
                current = self._is_current(name, handle)
                if current and self._whole(self.root / name) is not None:
                    os.utime(handle)
                    return Lease(self.root / name / MODEL, os.dup(handle))
            finally:
                os.close(handle)
            if current:
                return None
        return None

    def _open_lock(self, name: str) -> int | None:
        try:
            return os.open(self.root / name / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _is_current(self, name: str, handle: int) -> bool:
        """Whether the locked file is still the entry's: it may have been removed, and made anew, before we had it."""
        try:
            there = (self.root / name / _LOCK).stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(handle))

    def _drop(self, name: str) -> bool:
        """Takes an entry's folder away, at once by name and then for good; whether there was one."""
        trash = Path(tempfile.mkdtemp(dir=self.root, prefix=_TRASH))
        try:
            (self.root / name).rename(trash / "entry")
        except FileNotFoundError:
            return False
        finally:
            shutil.rmtree(trash, ignore_errors=True)
        return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One process at a time writes: compiling takes all cores and much memory, so two would not be faster."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.root / ".writing", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever left these behind is dead: the lock says so.
            for path in [*self.root.glob(f"{_MAKING}*"), *self.root.glob(f"{_TRASH}*")]:
                shutil.rmtree(path, ignore_errors=True)
            yield
        finally:
            os.close(handle)

    def _whole(self, folder: Path) -> _Record | None:
        """The record of an entry whose files are all there and as long as they were."""
        record = _read(folder / _RECORD)
        if record is None or not (folder / _LOCK).is_file() or _files(folder / MODEL) != record.files:
            return None
        return record

    def _entry(self, folder: Path) -> Entry:
        record, whole = _read(folder / _RECORD), self._whole(folder)
        try:
            last_use = (folder / _LOCK).stat().st_mtime
        except OSError:
            last_use = 0.0
        return Entry(
            name=folder.name,
            source=record.source if record else "unknown",
            sha256=record.sha256 if record else "",
            compute_unit=record.compute_unit if record else "",
            build=record.build if record else "",
            size_bytes=sum(_files(folder).values()),
            seconds=record.seconds if record else 0.0,
            last_use=last_use,
            in_use=self._in_use(folder.name),
            damaged=whole is None,
        )

    def _in_use(self, name: str) -> bool:
        handle = self._open_lock(name)
        if handle is None:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False


def _read(path: Path) -> _Record | None:
    try:
        if path.stat().st_size > _RECORD_LIMIT:
            return None
        return _Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _files(folder: Path) -> dict[str, int]:
    """The files below a folder, with their sizes."""
    found = {}
    for base, _, names in os.walk(folder):
        for path in (Path(base, name) for name in names):
            with suppress(FileNotFoundError):  # removed while we looked
                found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found

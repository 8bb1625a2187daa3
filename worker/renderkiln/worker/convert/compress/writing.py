"""Work folders that leave nothing behind, and appear under their real name only when all is well.

Whoever works in one holds a lock on it. The lock is the system's and goes with the process, however that ends, so that
the next one with the same target knows which folders are nobody's any more.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from renderkiln.schema.errors import CompressionError


@contextmanager
def new_folder(*, beside: Path) -> Iterator[Path]:
    """An empty folder in the one that `beside` is to lie in, so that a rename brings it there; removed at the end.

    What processes that were killed left of the same target is removed before.

    Raises:
        CompressionError: it cannot be made.
    """
    parent = beside.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(parent, beside.name)
        folder, lock = _make(parent, beside.name)
    except OSError as error:
        raise CompressionError(f"cannot write into {parent}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def reason(error: OSError) -> str:
    """Why something could not be written, in the system's words: of a whole folder's complaints the first."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        _source, _target, why = error.args[0][0]
        return str(why).partition(": '")[0]
    return error.strerror or str(error)


def _make(parent: Path, name: str) -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent))
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process took it for a leftover before it was locked
        if folder.exists():
            return folder, lock
        if lock is not None:
            os.close(lock)


def _remove_leftovers(parent: Path, name: str) -> None:
    made_here = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}\.tmp")
    for path in parent.iterdir():
        if made_here.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            try:
                lock = _lock(path)
            except OSError:
                continue  # somebody is at work in it, or it has just gone
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """A handle that holds the lock; None where the file system has no locks, so that nobody can tell whose it is.

    Raises:
        BlockingIOError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        os.close(handle)
        return None
    return handle

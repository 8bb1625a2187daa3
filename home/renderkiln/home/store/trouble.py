"""What the system says when a store fails, in plain words, with what to do."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from renderkiln.schema.errors import StoreError

#: How the system says that there is no room.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextlib.contextmanager
def explained(doing: str, folder: Path | None = None) -> Iterator[None]:
    """Turns whatever is raised inside into a StoreError; of `folder` it says how full the disk is."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        is_full = error.errno in FULL
        raise StoreError(f"{doing} failed: {_reason(error, folder)}", is_full=is_full) from error
    except NotImplementedError as error:
        raise StoreError(f"{doing} failed: such a store cannot do that; use a folder, s3 or sftp") from error
    except Exception as error:  # the libraries below fsspec have as many roots of errors
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise StoreError(f"{doing} failed: {said}; check the store's address and login") from error


def _reason(error: OSError, folder: Path | None) -> str:
    said = error.strerror or str(error) or type(error).__name__
    if error.errno in FULL:
        what = "the disk is full" if error.errno == errno.ENOSPC else "the disk quota is used up"
        return f"{what}{_free(folder)}; make room, or choose another store"
    if error.errno == errno.EROFS:
        return "the file system is read-only; mount it writable, or choose another store"
    if error.errno == errno.EFBIG:
        return "the file is larger than this file system or this account (ulimit -f) allows"
    if isinstance(error, PermissionError):
        return "permission denied; check who owns the store, or choose another"
    if isinstance(error, FileNotFoundError):
        return "it is not there; was it moved or removed, or is a disk not mounted?"
    if isinstance(error, (NotADirectoryError, FileExistsError, IsADirectoryError)):
        return f"{said}; a file is where a folder should be, or the other way round"
    return f"{said}; check the store, or choose another"


def _free(folder: Path | None) -> str:
    with contextlib.suppress(OSError):
        if folder is not None:
            return f" ({shutil.disk_usage(folder).free / 1e6:.0f} MB free)"
    return ""

"""Room on disks: how much there is, and whether an error means that there is none."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from .store.trouble import FULL

#: Bytes that are written to see whether a disk takes any: more than a file system may find in a block that it has.
_PROBE = 64 << 10


def free_bytes(folder: Path) -> int | None:
    """Bytes free where a folder is, or will be; None: its disk does not say."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None


def is_full(error: object, folder: Path) -> bool:
    """Whether SQLite failed because there is no room in a folder.

    It says so where the disk is full. Where a quota is used up, or its shared memory cannot grow, it only speaks of
    input and output: then a small file tells.
    """
    said = str(error)
    if "disk is full" in said:
        return True
    if "disk I/O error" not in said:
        return False
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as failed:
        return failed.errno in FULL
    return False

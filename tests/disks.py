"""Disks that are soon full."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Starts a program whose files, and those of all that it starts, can have so many bytes at most.
_LIMITED = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
_LIMITED += "os.execv(sys.argv[2], sys.argv[2:])"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mounts a disk of that size (say 1m) at a folder; tells whether that could be done here."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = sys.platform == "linux" and subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    """Makes a mounted disk larger or smaller."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def with_small_files(command: list[str], limit: int) -> list[str]:
    """The command, no file of which can have more bytes than the limit."""
    return [sys.executable, "-c", _LIMITED, str(limit), *command]

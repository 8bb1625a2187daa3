"""The data folder: who may look in and write, where the server's socket goes, whether the ledger can be read."""

from __future__ import annotations

import os
import sqlite3
import stat
from dataclasses import dataclass
from pathlib import Path

import psutil

from renderkiln.home.checkup import Finding, ok, problem, warning
from renderkiln.home.folder import DataFolder
from renderkiln.home.settings import Settings

#: Where SQLite's locks and its memory-mapped index cannot be relied on.
_NETWORK = frozenset({"nfs", "nfs4", "smbfs", "cifs", "afpfs", "webdav", "9p", "sshfs", "fuse.sshfs"})
#: Bytes of a socket's path with the closing NUL, on the system that allows least (macOS).
_MAX_SOCKET = 104
_BUSY = 2.0


@dataclass(frozen=True)
class Place:
    """A folder that exists, or the nearest one above it that does."""

    wanted: Path
    #: `wanted`, or what exists above it.
    there: Path
    is_folder: bool
    is_writable: bool
    is_ours: bool
    #: Permission bits.
    mode: int
    #: Of the file system, such as apfs or nfs; empty where that is not known.
    kind: str = ""

    @property
    def exists(self) -> bool:
        return self.there == self.wanted


def check_folder(settings: Settings) -> list[Finding]:
    """The data folder and what is in it."""
    data = DataFolder(settings.data_dir)
    findings = [judge_folder(look_at(data.root)), _judge_socket(data)]
    if data.ledger.exists():
        findings.append(judge_ledger(data.ledger))
    return findings


def look_at(folder: Path) -> Place:
    """What is known of a folder without touching it."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    found = there.stat()
    return Place(
        wanted=folder,
        there=there,
        is_folder=there.is_dir(),
        is_writable=os.access(there, os.W_OK | os.X_OK),
        is_ours=found.st_uid == os.getuid(),
        mode=stat.S_IMODE(found.st_mode),
        kind=_kind_of_disk(there),
    )


def judge_folder(place: Place) -> Finding:
    """Whether a data folder can be used, and by its owner alone."""
    about, folder = "data folder", str(place.wanted)
    facts = {"path": folder, "exists": place.exists, "mode": f"{place.mode:o}"}
    if not place.is_folder:
        return problem(about, f"{place.there} is a file", "give another folder with --data-dir", **facts)
    if not place.exists:
        if place.is_writable:
            return ok(about, f"{folder} is made when it is needed", **facts)
        says = f"{folder} cannot be made: {place.there} cannot be written"
        return problem(about, says, "give another folder with --data-dir", **facts)
    if not place.is_writable:
        return problem(
            about, f"{folder} cannot be written", f"chmod u+rwx '{folder}', or give another --data-dir", **facts
        )
    if place.kind in _NETWORK:
        says = f"{folder} is on a network share ({place.kind}): the ledger may be damaged there"
        return warning(about, says, "give a folder on a disk of this machine with --data-dir", **facts)
    if not place.is_ours:
        return warning(about, f"{folder} belongs to another user", "give a folder of your own with --data-dir", **facts)
    if place.mode & 0o077:
        says = f"{folder} is open to other users of this machine (mode {place.mode:o}): prompts and pictures are in it"
        return warning(about, says, f"chmod 700 '{folder}'", **facts)
    return ok(about, f"{folder}, for its owner alone", **facts)


def judge_socket(socket: Path, inside: bool, owner_is_other: bool) -> Finding:
    """Whether the embedded server can listen on its socket.

    Args:
        inside: whether the socket is in the data folder, and not in the temporary one because of its length.
        owner_is_other: whether its folder is there and belongs to another user.
    """
    length = len(os.fsencode(socket)) + 1
    facts = {"path": str(socket), "bytes": length}
    if length > _MAX_SOCKET:
        says = f"the path {socket} is too long for a socket: {length} bytes of {_MAX_SOCKET}"
        return problem("socket", says, "export TMPDIR=/tmp, or give a shorter --data-dir", **facts)
    if owner_is_other:
        says = f"{socket.parent} belongs to another user, so no embedded server is used there"
        return problem("socket", says, "give another folder with --data-dir", **facts)
    where = "" if inside else ", as the data folder's path is too long for a socket"
    return ok("socket", f"{socket}: {length} bytes of {_MAX_SOCKET}{where}", **facts)


def judge_ledger(path: Path) -> Finding:
    """Whether the ledger is a database that can be read. It is opened for reading only."""
    size_bytes = path.stat().st_size
    facts = {"path": str(path), "size_bytes": size_bytes}
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_BUSY)
        try:
            (tables,) = connection.execute("select count(*) from sqlite_master where type = 'table'").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        do = f"move '{path}' away (what is rendered stays in the store), or give another --data-dir"
        return problem("ledger", f"{path} cannot be read: {error}", do, **facts)
    return ok("ledger", f"{path}: {size_bytes / 1e6:,.1f} MB", tables=tables, **facts)


def _judge_socket(data: DataFolder) -> Finding:
    parent = data.socket.parent
    owner_is_other = parent.exists() and parent.lstat().st_uid != os.getuid()
    return judge_socket(data.socket, parent == data.server, owner_is_other)


def _kind_of_disk(path: Path) -> str:
    """From the system's table of mounts, which answers even where a share hangs."""
    above = {str(each) for each in (path, *path.parents)}
    mounts = [mount for mount in psutil.disk_partitions(all=True) if mount.mountpoint in above]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""

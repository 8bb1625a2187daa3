"""What the cgroups of this process leave it of the machine's memory: Linux's limits for containers and services.

The files are those of the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, the lists of groups and mounts
those of proc(5). As everywhere with cgroups, file cache that is not in use counts as free: the kernel drops it first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from .kernel_files import Stall, counts, read, stall, whole

Version = Literal[1, 2]
_OCTAL = re.compile(r"\\([0-3][0-7]{2})")
_NOT_TOLD = Stall(None, None)


class Room(NamedTuple):
    """What the cgroups of a process leave it, all in bytes; None where they leave it all that the machine has."""

    total: int | None
    available: int | None
    #: Of the group whose limit is `total`, with all that is inside it.
    stall: Stall


@dataclass(frozen=True)
class _Group:
    folder: Path
    version: Version

    def limit(self) -> int | None:
        """Bytes that all processes in it may have together; None where that is not limited.

        `memory.high` counts as `memory.max` does: above it, processes are slowed down until they hardly move.
        """
        if self.version == 2:
            found = [whole(read(self.folder / name)) for name in ("memory.max", "memory.high")]
        else:
            # The other one also knows of limits around a container, whose folders are not visible inside it.
            hierarchical = counts(read(self.folder / "memory.stat")).get("hierarchical_memory_limit")
            found = [whole(read(self.folder / "memory.limit_in_bytes")), hierarchical]
        # Nothing lives under a limit of 0: it is written to have a group emptied, or is no number of the kernel's.
        return min((limit for limit in found if limit), default=None)

    def used(self) -> int | None:
        """Bytes in use, without the file cache that the kernel would drop.

        Of that in frequent use, too, as it is with `MemAvailable`: a worker that reads its models again and again fills
        a group with it. What is mapped is left out of this: it may well be a stage's weights.
        """
        usage, prefix = ("memory.current", "") if self.version == 2 else ("memory.usage_in_bytes", "total_")
        used = whole(read(self.folder / usage))
        if used is None:
            return None
        said = counts(read(self.folder / "memory.stat"))
        inactive, active, mapped = (
            said.get(f"{prefix}{name}", 0)
            for name in ("inactive_file", "active_file", "file_mapped" if self.version == 2 else "mapped_file")
        )
        return max(0, used - inactive - max(0, active - mapped))

    def stall(self) -> Stall:
        return stall(read(self.folder / "memory.pressure")) if self.version == 2 else _NOT_TOLD


class Cgroups:
    """The groups that this process was in when this was made, with all around them. What they say is read each time."""

    def __init__(self, root: Path = Path("/")) -> None:
        paths = _paths(read(root / "proc/self/cgroup"))
        mounts = _mounts(read(root / "proc/self/mountinfo"), root)
        # Both may be mounted; the memory controller is in one of them, and the other has no such files.
        versions: tuple[Version, ...] = (2, 1)
        self._groups = [group for version in versions for group in _groups(version, paths.get(version, "/"), mounts)]

    def room(self, machine_total: int) -> Room:
        """What they leave of the machine's bytes. A limit beyond those is none, as v1's huge default."""
        limits = [(limit, group) for group in self._groups if (limit := group.limit()) and limit < machine_total]
        if not limits:
            return Room(None, None, _NOT_TOLD)
        total, tightest = min(limits, key=lambda pair: pair[0])
        # Not only the tightest: a wider group may be full of others' memory.
        left = (max(0, limit - (group.used() or 0)) for limit, group in limits)
        return Room(total, min(left), tightest.stall())


@dataclass(frozen=True)
class _Mount:
    version: Version
    #: Which part of the hierarchy is mounted: all of it is `/`, a container's may be its own group alone.
    root: str
    point: Path

    def folder(self, path: str) -> Path | None:
        """Where a group lies; None where that is not visible through this mount."""
        inside = path.removeprefix(self.root.rstrip("/"))
        # A group outside this process's cgroup namespace is told as `/../…`.
        if (self.root != "/" and inside == path) or inside[:1] not in ("", "/") or ".." in path.split("/"):
            return None
        folder = self.point / inside.strip("/")
        try:
            return folder if folder.is_dir() else None
        except OSError:
            return None


def _groups(version: Version, path: str, mounts: list[_Mount]) -> list[_Group]:
    """This process's group and all around it, the innermost first."""
    of_version = [mount for mount in mounts if mount.version == version]
    for mount in of_version:
        folder = mount.folder(path)
        if folder is not None:
            above = [parent for parent in folder.parents if parent.is_relative_to(mount.point)]
            return [_Group(folder, version) for folder in (folder, *above)]
    # Inside a container, the named path may be the host's; what is mounted is the container's then.
    return [_Group(mount.point, version) for mount in of_version[:1]]


def _paths(text: str) -> dict[Version, str]:
    """Where this process is in each version's hierarchy, from lines such as `0::/a` (v2) and `4:cpu,memory:/a` (v1)."""
    found: dict[Version, str] = {}
    for line in text.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            found[2] = path
        elif "memory" in controllers.split(","):
            found[1] = path
    return found


def _mounts(text: str, root: Path) -> list[_Mount]:
    """All mounts of the two hierarchies that may have the memory controller, from lines such as
    `35 31 0:32 /docker/a /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory`."""
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        place, kind = before.split(), after.split()
        if len(place) < 5 or len(kind) < 1:
            continue
        point = root / _plain(place[4]).lstrip("/")
        if kind[0] == "cgroup2":
            found.append(_Mount(2, _plain(place[3]), point))
        elif kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            found.append(_Mount(1, _plain(place[3]), point))
    return found


def _plain(name: str) -> str:
    """Without the kernel's way to write blanks in names, `\\040`."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), name)

"""Whether the disks that a worker writes to have room for a job: its pictures, and a reserve for everybody else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from renderkiln.home.checkup import size
from renderkiln.home.room import free_bytes
from renderkiln.schema.jobs import ImageFormat, Job

#: Bytes of a file for each of its pixels' bytes, as Stable Diffusion's pictures come out. A guess, since what does not
#: fit after all waits in memory.
_SHRINKS: dict[ImageFormat, float] = {"png": 0.6, "webp": 0.4, "jpeg": 0.2}
#: Seconds for which a look at a disk is good.
_FRESH = 1.0


@dataclass(frozen=True)
class Shortage:
    """A disk without room. Bytes."""

    what: str
    folder: Path
    free: int
    needed: int

    def __str__(self) -> str:
        return f"the disk of {self.what} ({self.folder}) has {size(self.free)} free, and {size(self.needed)} are needed"


def estimate(job: Job, largest_seen: int = 0) -> int:
    """About how many bytes the pictures of a job take; 0: that is not known.

    Args:
        largest_seen: bytes of the largest picture that its model made here, for jobs that do not say their size.
    """
    spec = job.spec
    each = largest_seen
    if spec.width and spec.height:
        each = int(spec.width * spec.height * 3 * _SHRINKS[job.image_format])
    return each * job.num_images


class Disks:
    """The disks, each looked at once a second at most.

    Args:
        reserve: bytes that must be left on each.
        free: bytes free where a folder is; None: that cannot be known.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        reserve: int,
        free: Callable[[Path], int | None] = free_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reserve, self._free_of, self._clock = reserve, free, clock
        self._seen: dict[Path, tuple[float, int | None]] = {}

    def shortage(self, what: str, folder: Path, more: int = 0) -> Shortage | None:
        """What a disk lacks for so many bytes beside the reserve; None: nothing, or that cannot be known."""
        free, needed = self._free(folder), self._reserve + more
        return None if free is None or free >= needed else Shortage(what, folder, free, needed)

    def _free(self, folder: Path) -> int | None:
        now = self._clock()
        at, free = self._seen.get(folder, (float("-inf"), None))
        if now - at >= _FRESH:
            if len(self._seen) > 100:  # jobs may name as many stores as they like
                self._seen.clear()
            at, free = now, self._free_of(folder)
            self._seen[folder] = (at, free)
        return free

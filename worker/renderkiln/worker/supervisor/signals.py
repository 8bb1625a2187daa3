"""What may interrupt a worker's waiting: set by signal handlers and by the thread that hears RQ's commands."""

from __future__ import annotations

import contextlib
import os
import select


class Signals:
    """Flags, and a pipe through which setting one wakes whoever waits at once."""

    def __init__(self) -> None:
        #: Id of the job that RQ's stop-job command named. Of a job, not a flag: by the time it is read, another
        #: job may be at work.
        self.canceled_job: str | None = None
        self.stop_after_image = False
        self.stop_now = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    @property
    def descriptor(self) -> int:
        """Readable when something was set."""
        return self._read

    def wake(self) -> None:
        """Wakes whoever waits. Safe in a signal handler, and when all is over."""
        with contextlib.suppress(OSError):  # full: it will be woken anyway; closed: nobody waits
            os.write(self._write, b"!")

    def drain(self) -> None:
        """Forgets earlier wakings."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                continue

    def sleep(self, seconds: float) -> None:
        """Sleeps, but not on when something is set meanwhile."""
        select.select([self._read], [], [], seconds)
        self.drain()

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

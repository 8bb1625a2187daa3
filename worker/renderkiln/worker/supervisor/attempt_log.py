"""What is logged during an attempt, by the supervisor and by its renderer: the end of it is kept with a failure."""

from __future__ import annotations

import codecs
import logging
import sys
import threading
from collections.abc import Callable
from typing import IO

#: Characters of it that are kept.
KEPT = 16_000

#: For what belongs into the log of an attempt alone, such as a renderer's traceback: it is not shown.
details = logging.getLogger("renderkiln.details")
details.propagate = False
details.setLevel(logging.DEBUG)


class AttemptLog(logging.Handler):
    """Keeps the end of what is logged from `begin` on. One for each worker, between `open` and `close`."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        self._guard = threading.Lock()
        self._text = ""

    def open(self) -> None:
        for logger in (logging.getLogger("renderkiln"), details):
            logger.addHandler(self)

    def close(self) -> None:
        for logger in (logging.getLogger("renderkiln"), details):
            logger.removeHandler(self)
        super().close()

    def begin(self) -> None:
        """Another attempt begins."""
        with self._guard:
            self._text = ""

    def add(self, text: str) -> None:
        """Adds what is written elsewhere; may be called from any thread."""
        with self._guard:
            self._text = (self._text + text)[-KEPT:]

    def emit(self, record: logging.LogRecord) -> None:
        self.add(self.format(record) + "\n")

    @property
    def text(self) -> str:
        return self._text


class Echo:
    """Passes on what a process writes to its standard error: to ours, and to whoever keeps it.

    Args:
        stream: our end of its standard error; closed at its end.
        keep: told of each piece, in a thread.
    """

    def __init__(self, stream: IO[bytes], keep: Callable[[str], None]) -> None:
        self._stream, self._keep = stream, keep
        # A daemon: a process that the renderer started may hold the other end for as long as it likes.
        self._thread = threading.Thread(target=self._run, name="echo", daemon=True)
        self._thread.start()

    def finish(self, timeout: float = 1.0) -> None:
        """Waits until all has been passed on, where the process has ended."""
        self._thread.join(timeout)

    def _run(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with self._stream as stream:
            while piece := stream.read(4096):
                text = decoder.decode(piece)
                self._keep(text)
                sys.stderr.write(text)
                sys.stderr.flush()

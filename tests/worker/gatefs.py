"""A store with a gate: `gate:///folder`, a folder whose every picture waits for the test to say how it goes.

The worker loads it through fsspec's entry points. Writing a picture connects to the port in GATEFS_PORT and waits for
one word: `go`, or anything else, which fails. As long as the test says nothing, the store is slow.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from fsspec.implementations.local import LocalFileSystem


class GateFileSystem(LocalFileSystem):  # type: ignore[misc]
    """The store; see the module."""

    protocol = "gate"

    def pipe_file(self, path: str, value: bytes, **kwargs: Any) -> None:
        if ".png" in path:  # a worker also tries its store with a small file at its start
            with socket.create_connection(("127.0.0.1", int(os.environ["GATEFS_PORT"]))) as gate:
                if gate.recv(16) != b"go":
                    raise OSError(errno.EIO, "the test says so")
        super().pipe_file(path, value, **kwargs)

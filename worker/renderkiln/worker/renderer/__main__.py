"""Entry of the renderer process: `python -m renderkiln.worker.renderer FD MEMORY_FD CONFIG`.

Started by the supervisor alone.
"""

from __future__ import annotations

import faulthandler
import json
import signal
import socket
import sys
from multiprocessing.connection import Connection

from renderkiln.worker.protocol import RendererConfig

from .loop import serve


def main() -> None:
    faulthandler.enable()  # a crash in native code leaves the line of ours that led there, in the attempt's log
    # Ctrl-C in a terminal reaches every process of its group; when to stop is the supervisor's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor, memory, config = int(sys.argv[1]), int(sys.argv[2]), RendererConfig(**json.loads(sys.argv[3]))
    with Connection(descriptor) as connection, socket.socket(fileno=memory) as memory_socket:
        serve(connection, memory_socket, config)


if __name__ == "__main__":
    main()

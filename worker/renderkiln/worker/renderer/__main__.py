"""Entry of the renderer process: `python -m renderkiln.worker.renderer FD CONFIG`, started by the supervisor alone."""

from __future__ import annotations

import json
import signal
import sys
from multiprocessing.connection import Connection

from renderkiln.worker.protocol import RendererConfig

from .loop import serve


def main() -> None:
    # Ctrl-C in a terminal reaches every process of its group; when to stop is the supervisor's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptor, config = int(sys.argv[1]), RendererConfig(**json.loads(sys.argv[2]))
    with Connection(descriptor) as connection:
        serve(connection, config)


if __name__ == "__main__":
    main()

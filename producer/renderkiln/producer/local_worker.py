"""A worker of one's own for as long as one command runs: started as another process, stopped with a signal."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from renderkiln.home.flags import RENDERING
from renderkiln.home.folder import DataFolder
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import WorkerUnavailableError


class LocalWorker:
    """`renderkiln worker` as a child process, its log in the data folder."""

    #: Times that a worker which ends by itself is started again within one command.
    MAX_STARTS = 5

    def __init__(self, settings: Settings, out: str, model: str) -> None:
        self._settings, self._out, self._model = settings, out, model
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self.log = DataFolder(settings.data_dir).logs / "worker.log"

    @staticmethod
    def check() -> None:
        """Raises WorkerUnavailableError where this installation cannot render."""
        if importlib.util.find_spec("torch") is None or importlib.util.find_spec("diffusers") is None:
            raise WorkerUnavailableError(
                "rendering on this machine needs torch and diffusers: pip install 'renderkiln[worker]'. "
                "To have another machine render, use `renderkiln submit` with RENDERKILN_REDIS_URL."
            )

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def ensure_running(self) -> None:
        """Starts the worker, or starts it again if it has ended. Raises WorkerUnavailableError after several times."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None and (self._starts >= self.MAX_STARTS or self._process.returncode in (2, 3)):
            raise WorkerUnavailableError(
                f"the worker ended with exit code {self._process.returncode}: {self._last_words()} (log: {self.log})"
            )
        self._starts += 1
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [sys.executable, "-m", "renderkiln.producer", "worker", "--warm", self._model]
        # If we are killed, the worker finishes what is queued, and ends.
        command += ["--owner", str(os.getpid())]
        command += ["--data-dir", str(self._settings.data_dir), "--out", self._out]
        for name in RENDERING:
            value = getattr(self._settings, name)
            command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for us, and we tell the worker.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def ask_to_stop(self) -> None:
        """Once: finish the image at hand. Twice: at once."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it has ended within `timeout` seconds."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, timeout: float = 30.0) -> None:
        """Stops it: politely, then at once, then for good."""
        for grace in (timeout, 20.0):
            self.ask_to_stop()
            if self.wait(grace):
                return
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        lines = Path(self.log).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

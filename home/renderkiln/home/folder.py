"""The data folder: one folder per machine that holds ledger, server, models and input pictures, and who may look in."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from renderkiln.schema.errors import SettingsError

#: macOS allows 104 bytes for a socket's path with the closing NUL, Linux 108.
_MAX_SOCKET_PATH = 100


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path that a person wrote, made absolute, `~` and all.

    Raises:
        SettingsError: it names the home of a user who does not exist, or holds a NUL.
    """
    try:
        if "\x00" in os.fspath(path):
            raise RuntimeError("it holds a NUL character")
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise SettingsError(f"path {os.fspath(path)!r} cannot be used: {error}") from None


@dataclass(frozen=True)
class DataFolder:
    """Where things lie below one data folder. Making it makes nothing on disk; `ensure` does."""

    root: Path

    def ensure(self) -> DataFolder:
        """Makes the folder, for its owner alone.

        Raises:
            SettingsError: it is a file, or cannot be made or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise SettingsError(
                f"data folder {self.root} cannot be made: {error.strerror}. Give another with --data-dir."
            ) from None
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise SettingsError(f"data folder {self.root} cannot be written. Give another with --data-dir.")
        return self

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def hub_ledger(self) -> Path:
        """What the hub of a fleet knows, where this machine runs it."""
        return self.root / "hub.db"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def server(self) -> Path:
        return self.root / "server"

    @property
    def blobs(self) -> Path:
        return self.root / "inputs"

    @property
    def embeddings(self) -> Path:
        """Encoded prompts, where the settings say that they are kept on disk."""
        return self.root / "embeddings"

    @property
    def spool(self) -> Path:
        """Pictures whose store is away."""
        return self.root / "spool"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def socket(self) -> Path:
        """The embedded server's unix socket: in the folder, or in the system's temporary one if that is too long."""
        inside = self.server / "valkey.sock"
        if len(os.fsencode(inside)) < _MAX_SOCKET_PATH:
            return inside
        tag = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"renderkiln-{os.getuid()}-{tag}" / "valkey.sock"

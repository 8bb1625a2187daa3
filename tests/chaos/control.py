"""What the harness tells a worker's process while it runs: small files in a folder, which the process looks at.

Both sides use this module. A file is written whole (a rename), so that nobody reads half of it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class Control:
    """One worker's folder of wishes; it outlives the worker's processes.

    - `kill`: a boundary at which the process kills itself, and how often it lets it pass before.
    - `clock`: seconds by which the machine's clock is wrong.
    - `full`, `readonly`: there while the disk of the store is full, and while the ledger cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def set(self, name: str, value: Any = True) -> None:
        part = self.folder / f".{name}.{os.getpid()}"
        part.write_text(json.dumps(value))
        part.replace(self.folder / name)

    def get(self, name: str) -> Any:
        """What was set, or None."""
        try:
            return json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return None

    def take_back(self, name: str) -> bool:
        """Whether it was there to be taken back."""
        try:
            (self.folder / name).unlink()
        except FileNotFoundError:
            return False
        return True

    def is_set(self, name: str) -> bool:
        return (self.folder / name).exists()

    def write(self, name: str, line: str) -> None:
        """Adds a line to a file; in one write, so that lines of several processes stay whole."""
        handle = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, f"{line}\n".encode())
        finally:
            os.close(handle)

    def note(self, kind: str, **said: Any) -> None:
        """Adds to what this worker's processes did."""
        self.write("notes.jsonl", json.dumps({"kind": kind, "at": time.monotonic(), "pid": os.getpid(), **said}))

    def notes(self) -> list[dict[str, Any]]:
        try:
            lines = (self.folder / "notes.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

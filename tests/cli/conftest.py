"""The command, run as a person would: in this process for speed, as a process of its own where that matters."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from renderkiln.home.folder import DataFolder
from renderkiln.home.server import EmbeddedServer
from renderkiln.home.settings import Settings
from renderkiln.producer.cli.app import main


@dataclass(frozen=True)
class Said:
    """What a command wrote, and what it ended with."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture
def run(no_settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `renderkiln ARGUMENTS…` in this process, through the very function that the command is."""

    def run_it(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["renderkiln", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Said(code, said.out, said.err)

    return run_it


@pytest.fixture
def fleet(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Commands find the running, empty server through their environment."""
    assert settings.redis_url is not None
    monkeypatch.setenv("RENDERKILN_REDIS_URL", settings.redis_url.get_secret_value())
    monkeypatch.setenv("RENDERKILN_DATA_DIR", str(settings.data_dir))
    return settings


@pytest.fixture
def alone(no_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmbeddedServer]:
    """A machine without a Redis: commands start an embedded server of their own, which is stopped at the end."""
    monkeypatch.setenv("RENDERKILN_DATA_DIR", str(tmp_path / "data"))
    server = EmbeddedServer(DataFolder(tmp_path / "data"))
    yield server
    server.stop()


def process(*arguments: object, code: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """`renderkiln ARGUMENTS…` as a process; `code` runs in it first."""
    start = f"{code}\nimport sys\nfrom renderkiln.producer.cli.app import main\nmain()"
    command = [sys.executable, "-c", start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)

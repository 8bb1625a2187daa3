"""A Hub on this machine, and a client of it: the real library, told the server's address."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants as constants
import pytest

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import installed_models
from renderkiln.worker.models import fetch
from renderkiln.worker.models.pull import Request, plan_pull, run_pull

from . import repositories
from .server import HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub with Apple's palettized Stable Diffusion 1.5 and its original; this process's library asks it."""
    server = HubServer()
    server.add(repositories.PALETTIZED, repositories.apples())
    server.add(repositories.ORIGINAL, repositories.diffusers())
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template[template.index("/{repo_id}") :])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetch, "WAITS", ())
    yield server
    huggingface_hub.close_session()  # its connections would outlive the server
    server.close()


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


def own(data: DataFolder) -> list[str]:
    """The names of the store's models."""
    return [model.name for model in installed_models(data) if not model.packaged]


#: Pulls in this process; returns the model's folder.
Pull = Callable[..., Path]


@pytest.fixture
def pull(hub: HubServer, data: DataFolder) -> Pull:
    """`pull(repository, **request)`; of Apple's repositories the compiled models unless told."""

    def run(repository: str = repositories.PALETTIZED, **options: object) -> Path:
        plan = plan_pull(Request(repository, **{"form": "compiled", **options}), data)  # type: ignore[arg-type]
        if plan is None:
            return data.models / str(options.get("name", repository))
        return run_pull(plan, data, lambda *_: None, lambda _: None)

    return run


@pytest.fixture
def environment(hub: HubServer, no_settings: Path, tmp_path: Path) -> dict[str, str]:
    """For commands in processes of their own: the server's address, an empty cache, no token, no settings."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "RENDERKILN_DATA_DIR": str(tmp_path / "data"),
    }


#: Runs the command line in a process of its own.
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(environment: dict[str, str]) -> Command:
    """`command("models", "list", HF_TOKEN="…")`."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "renderkiln.producer", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=150,
            env={**environment, **variables},
        )

    return run

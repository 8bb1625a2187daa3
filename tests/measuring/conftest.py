"""A machine with a converted model of two variants, and what its measuring processes shall do wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import run
from tests.coreml.conftest import Library, library

from renderkiln.home.folder import DataFolder

__all__ = ["library", "run"]

ROOT = Path(__file__).parents[2]
Fault = Callable[[str], None]


@pytest.fixture(autouse=True)
def _gradients() -> Iterator[None]:
    """On again after a conversion: other tests train."""
    yield
    torch.set_grad_enabled(True)


@pytest.fixture
def data(no_settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    folder = DataFolder(tmp_path / "data").ensure()
    monkeypatch.setenv("RENDERKILN_DATA_DIR", str(folder.root))
    return folder


@pytest.fixture
def both(library: Library, data: DataFolder) -> Path:
    """The installed model `both`: `original` beside its small files, `split-einsum` (batch one, chunks) below."""
    return install_both(library, data)


def install_both(library: Library, data: DataFolder) -> Path:
    folder = data.models / "both"
    shutil.copytree(library.converted("tiny-core"), folder)
    (folder / "split-einsum").symlink_to(library.converted("tiny-small"))
    return folder


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Fault:
    """`pretend("black in both")`: see pretend/sitecustomize.py. For processes that are started from now on."""

    def use(fault: str) -> None:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests/measuring/pretend"), str(ROOT)]))
        monkeypatch.setenv("MEASURED_FAULT", fault)

    return use

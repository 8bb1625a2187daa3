"""The whole engine over AppleRuntime: what it draws is, to the bit, what it draws over the reference runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.coreml.conftest import Library, coreml_engine, library
from tests.engine.conftest import Renderer

from renderkiln.home.folder import DataFolder
from renderkiln.worker.engine import making
from renderkiln.worker.engine.torch_engine import torch_options
from renderkiln.worker.models import choosing
from renderkiln.worker.runtimes import manifest
from renderkiln.worker.runtimes.apple.cache import FOLDER, CompileCache

from .binding import Recording

__all__ = ["library"]
# A conversion, or waiting for another process's.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def folder(library: Library) -> Path:
    """A model with a UNet in two chunks of batch one. Converted before this is a Mac."""
    return library.converted("tiny-one")


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_a_picture(
    folder: Path, mac: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guidance_scale: float
) -> None:
    data = DataFolder(tmp_path / "data").ensure()
    [wanted] = Renderer(coreml_engine(folder, data.root))(seed=5, guidance_scale=guidance_scale)
    monkeypatch.setattr(choosing, "_IS_MAC", True)
    render = Renderer(coreml_engine(folder, data.root, compute_unit="cpu_and_ne"))
    [image] = render(seed=5, guidance_scale=guidance_scale)
    assert image.rgb == wanted.rgb
    packages = {info.file for stage in manifest.read(folder).stages.values() for info in stage.packages}
    entries = CompileCache(data.root / FOLDER).entries()
    assert len(packages) == 4
    assert {Path(entry.source).name for entry in entries} == packages
    assert {entry.compute_unit for entry in entries} == {"cpu_and_ne"}
    assert mac.calls["compile"] == 4
    [again] = Renderer(coreml_engine(folder, data.root, compute_unit="cpu_and_ne"))(
        seed=5, guidance_scale=guidance_scale
    )
    assert (again.rgb, mac.calls["compile"]) == (wanted.rgb, 4)


@pytest.mark.parametrize(("device", "threads"), [("mps", 1), ("cpu", 2)])
def test_torch_keeps_to_one_thread_where_core_ml_and_a_gpu_compute(
    folder: Path, mac: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, threads: int
) -> None:
    options = replace(torch_options("cpu"), device=torch.device(device))
    monkeypatch.setattr(making, "torch_options", lambda *_: options)
    monkeypatch.setattr(choosing, "_IS_MAC", True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Renderer(coreml_engine(folder, tmp_path, compute_unit="cpu_and_gpu"))(seed=5)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)

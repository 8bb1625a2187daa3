"""The whole engine over AppleRuntime: what it draws is, to the bit, what it draws over the reference runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.coreml.conftest import Library, coreml_engine, library
from tests.engine.conftest import Renderer

from renderkiln.home.folder import DataFolder
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

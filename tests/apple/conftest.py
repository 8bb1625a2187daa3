"""A Mac of which only coremltools' compiled binding is not real, and small packages to run on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.runtimes.programs import mb, save

from renderkiln.worker.runtimes.apple.cache import CompileCache
from renderkiln.worker.runtimes.manifest import PackageInfo
from renderkiln.worker.runtimes.mlpackage import open_package
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .binding import Recording, install

BUILD = "24G84"


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recording:
    """coremltools believes that it is on macOS 15.6, and finds the double where its binding should be."""
    recording = Recording(temporary=tmp_path)
    install(recording, monkeypatch.setattr, monkeypatch.setitem)
    return recording


@pytest.fixture
def cache(tmp_path: Path) -> CompileCache:
    return CompileCache(tmp_path / "compiled", build=BUILD)


def info_of(package: Path) -> PackageInfo:
    """What a manifest says of a package."""
    opened, runtime = open_package(package), ReferenceRuntime.load(package)
    return PackageInfo(
        file=package.name,
        size_bytes=opened.size,
        sha256=opened.sha256(),
        inputs=tuple(runtime.inputs.values()),
        outputs=tuple(runtime.outputs.values()),
    )


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All element types in and out: `sample` and `timestep` in half precision, `ids` whole numbers."""
    weight = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float16)

    def build(sample: object, timestep: object, ids: object) -> list[object]:
        hidden = mb.linear(x=sample, weight=weight, bias=np.zeros(32, np.float16))
        return [
            mb.add(x=hidden, y=timestep, name="half"),
            mb.cast(x=hidden, dtype="fp32", name="single"),
            mb.add(x=ids, y=np.int32(1), name="whole"),
        ]

    inputs = {"sample": ((2, 64), "float16"), "timestep": ((1,), "float16"), "ids": ((1, 4), "int32")}
    return save(tmp_path_factory.mktemp("small"), build, inputs)


@pytest.fixture(scope="session")
def info(package: Path) -> PackageInfo:
    return info_of(package)


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the package."""
    draw = np.random.default_rng(seed)
    return {
        "sample": draw.standard_normal((2, 64)).astype(np.float16),
        "timestep": np.array([0.5], np.float16),
        "ids": draw.integers(0, 9, (1, 4)).astype(np.int32),
    }

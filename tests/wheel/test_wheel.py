"""What an installed wheel has: all code, the migrations, the demo model; and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Names and sizes of the files in the wheel."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


def test_every_module_is_in_the_wheel(names: dict[str, int]) -> None:
    for root in ("schema", "home", "producer", "worker"):
        for path in (ROOT / root / "renderkiln").rglob("*.py"):
            assert path.relative_to(ROOT / root).as_posix() in names
    assert "renderkiln/__init__.py" not in names, "renderkiln is a namespace"
    assert "renderkiln/schema/py.typed" in names


def test_the_ledger_s_migrations_and_the_demo_model_are_in_the_wheel(names: dict[str, int]) -> None:
    assert any(name.startswith("renderkiln/schema/migrations/versions/0001") for name in names)
    model = {name: size for name, size in names.items() if name.startswith("renderkiln/worker/demo/shapes/")}
    assert "renderkiln/worker/demo/shapes/model_index.json" in model
    assert {name.split("/")[4] for name in model if name.endswith(".safetensors")} == {"unet", "vae", "text_encoder"}
    assert sum(model.values()) < 16e6


def test_nothing_else_is_in_the_wheel(names: dict[str, int]) -> None:
    for name in names:
        assert name.startswith("renderkiln/") or ".dist-info/" in name, name
        assert not name.endswith((".bin", ".ckpt", ".pt", ".pkl", ".pyc")), name

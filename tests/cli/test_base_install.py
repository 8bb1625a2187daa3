"""The commands that need what the base install leaves out say so, instead of failing where it is missing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from renderkiln.home.ledger import Ledger
from renderkiln.home.memory_records import MemoryRecords, MemorySample

# A finder that hides what the extras bring, as if they were not installed.
HIDING = """
import importlib.abc, importlib.util, sys
HIDDEN = {"torch", "numpy", "diffusers", "transformers", "coremltools", "matplotlib"}
class Hider(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else find(name, package)
sys.meta_path.insert(0, Hider())
from renderkiln.producer.cli.app import main
main()
"""


@pytest.mark.parametrize(
    "command",
    [
        ["worker"],
        ["convert", "shapes", "-o", "out"],
        ["compress", "out", "-o", "smaller", "--nbits", "6"],
        ["recipe", "unet.mlpackage", "-o", "recipe.json", "--target-size", "0.5x"],
    ],
    ids=lambda command: command[0],
)
def test_a_base_install_says_what_a_command_needs(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "unet.mlpackage").mkdir()
    said = _run(command, tmp_path)
    assert said.returncode == 3, said.stderr
    assert "which the base install leaves out: pip install" in " ".join(said.stderr.split())
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    "command",
    [["list"], ["show", "shapes"], ["plan", "shapes"], ["verify", "shapes"], ["path", "shapes"]],
    ids=lambda command: command[0],
)
def test_a_base_install_can_look_at_its_models(command: list[str], tmp_path: Path) -> None:
    said = _run(["models", *command], tmp_path)
    assert (said.returncode, "shapes" in said.stdout, said.stderr) == (0, True, "")


def test_a_base_install_gives_the_numbers_of_a_report_and_says_what_a_picture_needs(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with contextlib.closing(Ledger(tmp_path / "data" / "ledger.db")) as ledger:
        MemoryRecords(ledger).add_samples("mini-1", [MemorySample(1.0, 5, 6, "calm")])
    said = _run(["report", "--json"], tmp_path)
    assert (said.returncode, json.loads(said.stdout)["worker"]) == (0, "mini-1")
    said = _run(["report"], tmp_path)
    assert (said.returncode, said.stdout) == (3, "")
    assert "pip install 'renderkiln[report]'" in said.stderr
    assert not (tmp_path / "memory.svg").exists()


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", HIDING, *command],
        cwd=folder,
        env=os.environ | {"RENDERKILN_DATA_DIR": str(folder / "data")},
        capture_output=True,
        text=True,
        timeout=60,
    )

"""Real packages, made on the spot by tracing a small module: a token table, linear layers and a convolution."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from renderkiln.producer.cli.app import main
from renderkiln.worker.convert.compress.coremltools_quietly import quietly

TOKENS, WIDTH = 300, 48
#: The weights of the module that can be compressed, in order of use, with their elements.
LAYERS = {
    "wide_weight_to_fp16": 48 * 96,
    "narrow_weight_to_fp16": 96 * 48,
    "across_weight_to_fp16": 48 * 48 * 3,
}


class Small(torch.nn.Module):
    """Takes token ids as Apple's text encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(TOKENS, WIDTH)
        self.wide = torch.nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = torch.nn.Linear(2 * WIDTH, WIDTH)
        self.across = torch.nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.few = torch.nn.Linear(WIDTH, 4)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.table(ids.to(torch.int32))
        hidden = hidden + self.narrow(torch.nn.functional.silu(self.wide(hidden)))
        hidden = self.across(hidden.transpose(1, 2)).transpose(1, 2)
        return hidden, self.few(hidden)


def make_package(path: Path, *, target: str = "macOS13", half: bool = True, spoil: bool = False) -> Path:
    import coremltools as ct

    torch.manual_seed(0)
    module = Small().eval()
    if spoil:
        module.wide.weight.data[3, 5] = torch.inf
    example = torch.zeros(1, 77)
    with quietly(), torch.no_grad():
        traced = torch.jit.trace(module, example)
        model = ct.convert(
            traced,
            inputs=[ct.TensorType("input_ids", example.shape, np.float32)],
            outputs=[ct.TensorType("states", dtype=np.float32), ct.TensorType("few", dtype=np.float32)],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The models are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that tests only read: `small` for macOS 13, `new` for macOS 15, `single` of float32."""
    folder = tmp_path_factory.mktemp("packages")
    make_package(folder / "small.mlpackage")
    make_package(folder / "new.mlpackage", target="macOS15")
    make_package(folder / "single.mlpackage", half=False)
    return folder


@pytest.fixture
def small(made: Path, tmp_path: Path) -> Path:
    """A package of one's own, alone in a folder."""
    folder = tmp_path / "from"
    shutil.copytree(made / "small.mlpackage", folder / "small.mlpackage")
    return folder / "small.mlpackage"


class Command:
    """Runs the command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self._monkeypatch.setattr(sys, "argv", ["renderkiln", *map(str, arguments)])
        self._capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = self._capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_settings: Path) -> Command:
    return Command(monkeypatch, capsys)

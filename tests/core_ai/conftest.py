"""Small assets, written by Apple's converter; and the library of converted models, which all processes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import coreai_torch
import pytest
import torch
from tests.coreml.conftest import Library, coreml_engine, library, original
from tests.engine.conftest import Renderer

from renderkiln.worker.runtimes.coreai.runtime import CoreAIRuntime

__all__ = ["Library", "library", "original"]
Make = Callable[[str], Renderer]


class Affine(torch.nn.Module):
    """(2, n) and (1,) to (2, n) and (2, 1): one matrix for every n."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 4).reshape(2, 2))

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.weight @ x * scale
        return y, y.mean(1, keepdim=True)


def save(
    path: Path,
    module: torch.nn.Module,
    functions: Mapping[str, tuple[torch.Tensor, ...]],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    **export: Any,
) -> Path:
    """An asset with a function for each example, by its name."""
    converter = coreai_torch.TorchConverter(mode=coreai_torch.TorchConverter.Mode.RELEASE)
    for name, example in functions.items():
        program = torch.export.export(module, example, **export).run_decompositions(coreai_torch.get_decomp_table())
        converter.add_exported_program(program, input_names=inputs, output_names=outputs, entrypoint_name=name)
    converter.to_coreai().save_asset(path)
    return path


def examples(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, width, generator=torch.Generator().manual_seed(width)), torch.tensor([3.0])


@pytest.fixture(scope="session")
def affine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Affine` for widths of 3, 5 and 4."""
    path = tmp_path_factory.mktemp("assets") / "Affine.aimodel"
    functions = {"main": examples(3), "main_5": examples(5), "main_4": examples(4)}
    return save(path, Affine(), functions, ("x", "scale"), ("y", "mean"))


def load(path: Path, *functions: str) -> CoreAIRuntime:
    return CoreAIRuntime.load(path, compute_unit="reference", functions=functions)


@pytest.fixture
def converted(library: Library, tmp_path: Path) -> Make:
    """`converted(name)` renders with a converted model, whatever model a spec names."""
    return lambda name: Renderer(coreml_engine(library.converted(name), tmp_path, engine="coreai"))

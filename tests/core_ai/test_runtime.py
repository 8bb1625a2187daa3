"""The runtime against torch, on Apple's own interpreter; and what it refuses before that can end a process."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from renderkiln.schema.errors import ModelLoadError, PredictionError
from renderkiln.worker.runtimes.apple.system import COMPUTE_UNITS, ComputeUnit
from renderkiln.worker.runtimes.coreai.asset import open_asset
from renderkiln.worker.runtimes.coreai.description import mean_bits
from renderkiln.worker.runtimes.coreai.runtime import CoreAIRuntime
from renderkiln.worker.runtimes.coreai.system import on_all_units

from .conftest import Affine, examples, load, save

FUNCTIONS = ("main", "main_5", "main_4")


def arrays(width: int) -> dict[str, np.ndarray]:
    return dict(zip(("x", "scale"), (tensor.numpy() for tensor in examples(width)), strict=True))


@pytest.mark.parametrize("width", [3, 5, 4])
def test_each_size_is_run_by_its_function(affine: Path, width: int) -> None:
    runtime = load(affine, *FUNCTIONS)
    assert [runtime.inputs[name].shapes for name in ("x", "scale")] == [((2, 3), (2, 5), (2, 4)), ((1,),)]
    assert runtime.outputs["y"].shapes == ((2, 3), (2, 5), (2, 4))
    found = runtime.predict(arrays(width))
    wanted = Affine()(*examples(width))
    for name, tensor in zip(("y", "mean"), wanted, strict=True):
        np.testing.assert_allclose(found[name], tensor.detach().numpy(), rtol=1e-6)
        assert found[name].flags.owndata
        assert found[name].dtype == np.float32


def test_only_the_functions_that_were_asked_for_are_known(affine: Path) -> None:
    runtime = load(affine)
    assert runtime.inputs["x"].shapes == ((2, 3),)
    with pytest.raises(PredictionError, match=r"x must be of shape \(2, 3\), and is \(2, 5\)"):
        runtime.predict(arrays(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "Affine.aimodel needs the input x"),
        ({"y": np.zeros(1, np.float32)}, "has no input 'y'"),
        ({"x": np.zeros((2, 3))}, "x must be float32, and is float64"),
        ({"x": [[1.0]]}, "x must be a numpy array, and is list"),
        ({"x": np.zeros((3, 2), np.float32)}, "x must be of shape"),
    ],
)
def test_inputs_that_do_not_fit(affine: Path, change: dict[str, object], message: str) -> None:
    inputs = {name: value for name, value in {**arrays(3), **change}.items() if value is not None}
    with pytest.raises(PredictionError, match=message):
        load(affine).predict(inputs)  # type: ignore[arg-type]


def test_shapes_of_two_sizes_do_not_go_together(tmp_path: Path) -> None:
    class Add(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor]:
            return (a + b,)

    functions = {name: (torch.ones(width), torch.ones(width)) for name, width in (("main", 2), ("main_3", 3))}
    runtime = load(save(tmp_path / "Add.aimodel", Add(), functions, ("a", "b"), ("c",)), "main", "main_3")
    with pytest.raises(PredictionError, match=r"do not belong to one size: a \(2,\), b \(3,\)"):
        runtime.predict({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})


def test_it_can_be_called_from_a_loop_and_from_threads(affine: Path) -> None:
    runtime = load(affine)
    wanted = runtime.predict(arrays(3))["y"]

    async def within() -> np.ndarray:
        return load(affine).predict(arrays(3))["y"]

    found = [asyncio.run(within())]
    threads = [threading.Thread(target=lambda: found.append(runtime.predict(arrays(3))["y"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(each, wanted) for each in found)
    assert len(found) == 5


@pytest.mark.skipif(on_all_units(), reason="macOS 27 keeps what it specializes where it likes")
def test_what_it_wrote_goes_with_it(affine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    closed, dropped = load(affine), load(affine)
    assert len(list(tmp_path.iterdir())) == 2
    closed.close()
    closed.close()
    with pytest.raises(PredictionError, match="was closed"):
        closed.predict(arrays(3))
    del dropped
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("function", "hint"), [("main_6", "It has main, main_5, main_4"), ("man", "main")])
def test_a_function_that_is_not_there(affine: Path, function: str, hint: str) -> None:
    with pytest.raises(ModelLoadError, match=rf"Affine.aimodel has no function {function}\..*{hint}"):
        load(affine, function)


@pytest.mark.skipif(on_all_units(), reason="macOS 27 has them all")
def test_a_unit_that_this_system_does_not_have(affine: Path) -> None:
    with pytest.raises(ModelLoadError, match="cpu_and_ne from macOS 27"):
        CoreAIRuntime.load(affine, compute_unit="cpu_and_ne")


@pytest.mark.skipif(not on_all_units(), reason="Core AI has units from macOS 27 on")
@pytest.mark.parametrize("unit", COMPUTE_UNITS)
def test_each_unit_gives_what_torch_gives(affine: Path, unit: ComputeUnit) -> None:
    found = CoreAIRuntime.load(affine, compute_unit=unit).predict(arrays(3))["y"]
    np.testing.assert_allclose(found, Affine()(*examples(3))[0].detach().numpy(), atol=1e-2)


@pytest.fixture
def copy(affine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(affine, tmp_path / "Copy.aimodel"))


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_program_that_is_cut_off_is_refused(copy: Path, kept: float) -> None:
    program = copy / "main.mlirb"
    data = program.read_bytes()
    program.write_bytes(data[: min(int(len(data) * kept), len(data) - 1)])
    with pytest.raises(ModelLoadError, match=r"Copy\.aimodel"):
        load(copy)
    with pytest.raises(ModelLoadError, match=r"does not fit main\.hash|no program"):
        open_asset(copy).check_hash()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda asset: (asset / "main.mlirb").write_bytes(b"\0" * 5000), "no program of Core AI"),
        (lambda asset: (asset / "main.mlirb").write_bytes(b"ML\xefR" + b"\xff" * 5000), "its program cannot be read"),
        (lambda asset: (asset / "main.mlirb").unlink(), "has no main.mlirb"),
        (lambda asset: (asset / "metadata.json").unlink(), "has no metadata.json"),
        (lambda asset: (asset / "metadata.json").write_text("{"), "metadata.json"),
        (lambda asset: (asset / "metadata.json").write_text(" " * (2 << 20)), "metadata.json"),
        (lambda asset: (asset / "weights").symlink_to("/etc/hosts"), "leads outside of the model"),
        (lambda asset: shutil.rmtree(asset), "does not exist"),
        (lambda asset: (shutil.rmtree(asset), asset.write_text("")), "is a file, not a folder"),
    ],
)
def test_what_is_no_asset_is_refused(copy: Path, damage: object, message: str) -> None:
    damage(copy)  # type: ignore[operator]
    with pytest.raises(ModelLoadError, match=message):
        load(copy)


def test_what_no_stage_takes_is_refused(tmp_path: Path) -> None:
    class Cut(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x.float() + 1,)

    half = save(tmp_path / "Half.aimodel", Cut(), {"main": (torch.ones(2, dtype=torch.bfloat16),)}, ("x",), ("y",))
    with pytest.raises(ModelLoadError, match=r"Half.aimodel takes x as BFloat16; known are float16, float32, int32"):
        load(half)
    open_shape = save(
        tmp_path / "Open.aimodel",
        Cut(),
        {"main": (torch.ones(4),)},
        ("x",),
        ("y",),
        dynamic_shapes=({0: torch.export.Dim("n", min=2, max=9)},),
    )
    with pytest.raises(ModelLoadError, match="its shape is open"):
        load(open_shape)


def test_an_asset_is_its_program(copy: Path, affine: Path) -> None:
    (copy / "metadata.json").write_text(json.dumps({"author": "somebody else"}))
    (copy / "main-universal.odix").write_bytes(b"of one machine")
    assert open_asset(copy).sha256() == open_asset(affine).sha256()
    open_asset(copy).check_hash()


_FLOATS = st.sampled_from([("Float16", 16), ("Float32", 32), ("BFloat16", 16), ("Int4", 4), ("UInt8", 8)])


@given(st.lists(st.tuples(_FLOATS, st.integers(1, 10**9))), st.integers(0, 10**6))
def test_bits_are_those_of_the_weights(stored: list[tuple[tuple[str, int], int]], indices: int) -> None:
    found = mean_bits([*((name, count) for (name, _), count in stored), ("Int32", indices), ("UInt64", indices)])
    if not stored:
        assert found is None
    else:
        exact = sum(bits * count for (_, bits), count in stored) / sum(count for _, count in stored)
        assert found == pytest.approx(exact, abs=0.005)

"""AppleRuntime over coremltools' real classes: what it gives, what it refuses, what it says of failures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from renderkiln.schema.errors import ModelLoadError, OutOfMemoryError, PredictionError, RenderkilnError
from renderkiln.worker.runtimes.apple.cache import CompileCache
from renderkiln.worker.runtimes.apple.runtime import AppleRuntime
from renderkiln.worker.runtimes.apple.system import COMPUTE_UNITS, ComputeUnit
from renderkiln.worker.runtimes.base import TensorInfo
from renderkiln.worker.runtimes.manifest import PackageInfo
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .binding import Recording, core_ml_error
from .conftest import arrays

UNIT: ComputeUnit = "cpu_and_ne"
Load = Callable[..., AppleRuntime]


@pytest.fixture
def load(mac: Recording, package: Path, info: PackageInfo, cache: CompileCache) -> Load:
    def load(path: Path = package, info: PackageInfo = info, unit: ComputeUnit = UNIT, **more: Any) -> AppleRuntime:
        return AppleRuntime.load(path, info, compute_unit=unit, cache=cache, **more)

    return load


@pytest.mark.parametrize("unit", COMPUTE_UNITS)
def test_gives_what_the_reference_runtime_gives(
    load: Load, mac: Recording, package: Path, info: PackageInfo, unit: ComputeUnit
) -> None:
    runtime = load(unit=unit)
    assert dict(runtime.inputs) == {each.name: each for each in info.inputs}
    assert dict(runtime.outputs) == {each.name: each for each in info.outputs}
    got, want = runtime.predict(arrays()), ReferenceRuntime.load(package).predict(arrays())
    assert list(got) == ["half", "single", "whole"]
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
        assert (got[name].dtype, got[name].flags["C_CONTIGUOUS"], got[name].base) == (array.dtype, True, None)
    assert [(Path(url).suffix, used) for url, used, _, _ in mac.loaded] == [(".mlmodelc", unit.upper())]


def test_arrays_that_numpy_does_not_own_or_lays_out_otherwise(load: Load) -> None:
    runtime, given = load(), arrays()
    want = runtime.predict(given)
    locked = given["sample"].copy()
    locked.flags.writeable = False
    odd = {"sample": locked, "timestep": given["timestep"], "ids": given["ids"][:, ::-1].copy()[:, ::-1]}
    got = runtime.predict(odd)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
    assert given["sample"].dtype == np.float16  # coremltools exchanges arrays in its dictionary, not in ours


def test_the_second_load_compiles_nothing(load: Load, mac: Recording, cache: CompileCache) -> None:
    first = load()
    assert first.compiled_in is not None
    first.close()
    second = load()
    assert second.compiled_in is None
    assert mac.calls["compile"] == 1
    assert mac.loaded[0][0] == mac.loaded[1][0]  # the system's own cache goes by the path
    assert Path(mac.loaded[0][0]).is_relative_to(cache.root)
    np.testing.assert_array_equal(second.predict(arrays())["half"], second.predict(arrays())["half"])


def test_each_unit_is_compiled_for_itself(load: Load, mac: Recording) -> None:
    for unit in COMPUTE_UNITS:
        load(unit=unit)
    assert mac.calls["compile"] == len({url for url, *_ in mac.loaded}) == 4


def test_a_compiled_model_is_loaded_from_where_it_is(
    load: Load, mac: Recording, cache: CompileCache, tmp_path: Path
) -> None:
    lent = load()
    there = Path(shutil.copytree(Path(mac.loaded[0][0]), tmp_path / "Unet.mlmodelc"))
    runtime = load(path=there)
    assert mac.loaded[-1][0] == str(there)
    assert (mac.calls["compile"], len(cache.entries())) == (1, 1)
    np.testing.assert_array_equal(runtime.predict(arrays())["half"], lent.predict(arrays())["half"])


def test_hints_say_what_is_true(load: Load, mac: Recording, info: PackageInfo) -> None:
    load()
    several = TensorInfo(name="sample", dtype="float16", shapes=((2, 64), (4, 64)))
    load(info=info.model_copy(update={"inputs": (several, *info.inputs[1:])}))
    mac.version = (14, 5)
    load()
    assert [hints for *_, hints in mac.loaded] == [
        {"specializationStrategy": "FastPrediction", "reshapeFrequency": "Infrequent"},
        {"specializationStrategy": "FastPrediction"},
        {},
    ]


def test_functions_need_macos_15(load: Load, mac: Recording) -> None:
    load(function="main")
    assert mac.loaded[-1][2] == "main"
    mac.version = (14, 5)
    with pytest.raises(ModelLoadError, match="macOS 15"):
        load(function="main")


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda given: given.pop(name)


def _with(**more: Any) -> Callable[[dict[str, Any]], None]:
    return lambda given: given.update(more)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("ids"), "needs the input ids"),
        (_with(sampel=np.zeros(1)), "no input 'sampel'. Did you mean 'sample'"),
        (_with(sample=np.zeros((2, 64), np.float32)), "sample must be float16, and is float32"),
        (_with(sample=np.zeros((1, 64), np.float16)), r"sample must be of shape \(2, 64\), and is \(1, 64\)"),
        (_with(ids=[1, 2, 3, 4]), "ids must be a numpy array, and is list"),
        (_with(ids=np.zeros((1, 4), ">i4")), "ids must be int32"),
    ],
)
def test_inputs_that_do_not_fit_never_reach_core_ml(
    load: Load, mac: Recording, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    given = arrays()
    change(given)
    runtime = load()
    with pytest.raises(PredictionError, match=said):
        runtime.predict(given)
    assert mac.calls["predict"] == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("half", None, "NoneType, not an array for the output half"),
        ("half", np.full((2, 32), 0.1, np.float32), "half must be float16, and is float32"),
        ("half", np.full((2, 32), 1e6, np.float32), "half must be float16, and is float32"),
        ("single", np.zeros((2, 32), np.float64), "single must be float32, and is float64"),
        ("whole", np.zeros((4,), np.int32), r"whole must be of shape \(1, 4\), and is \(4,\)"),
    ],
)
def test_outputs_that_are_not_as_declared_are_errors(
    load: Load, mac: Recording, name: str, value: Any, said: str
) -> None:
    mac.change = lambda outputs: {**outputs, name: value}
    runtime = load()
    with pytest.raises(PredictionError, match=said):
        runtime.predict(arrays())


def test_an_output_that_is_missing(load: Load, mac: Recording) -> None:
    mac.change = lambda outputs: {"half": outputs["half"]}
    with pytest.raises(PredictionError, match="gave nothing for the output single"):
        load().predict(arrays())


def test_nan_and_infinity_come_through(load: Load, mac: Recording) -> None:
    values = np.zeros((2, 32), np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    mac.change = lambda outputs: {**outputs, "half": values}
    np.testing.assert_array_equal(load().predict(arrays())["half"], values.astype(np.float16))


@pytest.mark.parametrize(
    ("where", "fault", "kind", "said"),
    [
        ("predict", core_ml_error("Error computing NN outputs."), OutOfMemoryError, "Error computing NN outputs"),
        ("predict", core_ml_error("Insufficient Memory (00000008)"), OutOfMemoryError, "memory ran out"),
        ("predict", MemoryError("std::bad_alloc"), OutOfMemoryError, "memory ran out"),
        ("predict", core_ml_error("Program Inference error"), PredictionError, "Program Inference error"),
        ("load", core_ml_error("no memory for request"), OutOfMemoryError, "smaller or more compressed"),
        ("compile", core_ml_error("compiler error: no such op"), ModelLoadError, "no such op"),
        ("compile", OSError(28, "No space left on device"), ModelLoadError, "models cache clean"),
    ],
)
def test_failures_of_core_ml(
    load: Load, mac: Recording, where: str, fault: Exception, kind: type[RenderkilnError], said: str
) -> None:
    mac.faults[where] = [fault]
    with pytest.raises(kind, match=said):
        load().predict(arrays())
    assert load().predict(arrays())["whole"].shape == (1, 4)  # and nothing is left that would disturb the next time


def test_what_cannot_be_kept_is_not_left_in_the_temporary_folder(
    load: Load, mac: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "move", full)
        with pytest.raises(ModelLoadError, match="no room"):
            load()
    load()
    assert mac.calls["compile"] == 2
    assert list(mac.temporary.glob("*/*.mlmodelc")) == []


def test_a_load_that_fails_says_what_else_to_try(load: Load, mac: Recording) -> None:
    mac.faults["load"] = [core_ml_error("Failed to build the model execution plan")]
    with pytest.raises(ModelLoadError, match=r"model.mlpackage.*execution plan.*--compute-unit cpu_and_gpu"):
        load()
    assert mac.calls["compile"] == 1  # it was compiled just now: there is no use in compiling it again


def test_a_kept_model_that_core_ml_refuses_is_compiled_anew(load: Load, mac: Recording, cache: CompileCache) -> None:
    load().close()
    mac.faults["load"] = [core_ml_error("Unable to load model")]
    runtime = load()
    assert (mac.calls["compile"], runtime.compiled_in is not None, len(cache.entries())) == (2, True, 1)
    assert runtime.predict(arrays())["whole"].shape == (1, 4)


def test_a_package_that_is_not_what_the_manifest_says(load: Load, mac: Recording, info: PackageInfo) -> None:
    with pytest.raises(ModelLoadError, match="its SHA-256 is another"):
        load(info=info.model_copy(update={"sha256": "0" * 64}))
    assert mac.calls["compile"] == 0


def test_a_package_for_a_newer_system(load: Load, mac: Recording) -> None:
    mac.version = (13, 2)
    mac.faults["compile"] = [core_ml_error("unsupported version")]
    with pytest.raises(ModelLoadError, match=r"made for macOS 15 and this is macOS 13.2"):
        load()


def test_no_room_for_it(load: Load, monkeypatch: pytest.MonkeyPatch, mac: Recording) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(ModelLoadError, match="no room"):
        load()
    assert mac.calls["compile"] == 0


@pytest.mark.parametrize("damage", [lambda path: shutil.rmtree(path), lambda path: (path / "coremldata.bin").unlink()])
def test_what_would_end_the_process_is_refused(
    load: Load, mac: Recording, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    load()
    there = Path(shutil.copytree(Path(mac.loaded[0][0]), tmp_path / "Unet.mlmodelc"))
    damage(there)
    with pytest.raises(ModelLoadError, match="no compiled model"):
        load(path=there)


def test_the_compiler_prints_into_nothing(load: Load, capfd: pytest.CaptureFixture[str]) -> None:
    load()
    print("and then")
    assert capfd.readouterr().out == "and then\n"


def test_a_closed_runtime(load: Load, cache: CompileCache) -> None:
    runtime = load()
    assert [entry.in_use for entry in cache.entries()] == [True]
    runtime.close()
    runtime.close()
    assert [entry.in_use for entry in cache.entries()] == [False]
    with pytest.raises(PredictionError, match="was closed"):
        runtime.predict(arrays())


def test_a_forgotten_runtime_is_not_in_use(load: Load, cache: CompileCache) -> None:
    runtime = load()
    del runtime
    assert [entry.in_use for entry in cache.entries()] == [False]


@pytest.mark.skipif("sys.platform == 'darwin'", reason="this system has Core ML")
def test_elsewhere_it_says_so(package: Path, info: PackageInfo, cache: CompileCache) -> None:
    with pytest.raises(ModelLoadError, match="part of macOS"):
        AppleRuntime.load(package, info, compute_unit=UNIT, cache=cache)
    assert not cache.root.exists()

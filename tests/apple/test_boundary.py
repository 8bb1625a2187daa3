"""That our calls fit coremltools' own signatures, and that the double has nothing that the real binding has not."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest

from renderkiln.worker.runtimes.apple import coreml
from renderkiln.worker.runtimes.apple.cache import CompileCache
from renderkiln.worker.runtimes.apple.runtime import AppleRuntime
from renderkiln.worker.runtimes.manifest import PackageInfo

from .binding import Recording, make_binding
from .conftest import arrays
from .test_plan import small_plan

SOURCES = ("model.py", "_compiled_model.py", "compute_plan.py", "compute_device.py", "utils.py")
Bound = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def bound(mac: Recording, monkeypatch: pytest.MonkeyPatch) -> Bound:
    """Each call that reaches coremltools, with its arguments by the names that coremltools gives them."""
    import coremltools as ct

    calls: Bound = []

    def listen(owner: Any, name: str, label: str) -> None:
        real = getattr(owner, name)
        signature = inspect.signature(real)

        def call(*given: Any, **named: Any) -> Any:
            arguments = signature.bind(*given, **named).arguments
            calls.append((label, {key: value for key, value in arguments.items() if key != "self"}))
            return real(*given, **named)

        monkeypatch.setattr(owner, name, call)

    listen(ct.models.CompiledMLModel, "__init__", "CompiledMLModel")
    listen(ct.models.CompiledMLModel, "predict", "predict")
    listen(ct.models.utils, "compile_model", "compile_model")
    listen(ct.models.compute_plan.MLComputePlan, "load_from_path", "load_from_path")
    return calls


def test_our_calls_are_these(
    bound: Bound, mac: Recording, package: Path, info: PackageInfo, cache: CompileCache
) -> None:
    import coremltools as ct

    runtime = AppleRuntime.load(package, info, compute_unit="cpu_and_gpu", cache=cache, function="main")
    runtime.predict(arrays())
    path = Path(mac.loaded[0][0])
    mac.plan = small_plan()
    coreml.load_plan(path, "cpu_and_ne")
    assert [name for name, _ in bound] == ["compile_model", "CompiledMLModel", "predict", "load_from_path"]
    compiled, loaded, predicted, planned = (arguments for _, arguments in bound)
    assert compiled == {"model": str(package)}
    assert loaded == {
        "path": str(path),
        "compute_units": ct.ComputeUnit.CPU_AND_GPU,
        "function_name": "main",
        "optimization_hints": {
            "specializationStrategy": ct.SpecializationStrategy.FastPrediction,
            "reshapeFrequency": ct.ReshapeFrequency.Infrequent,
        },
    }
    assert set(predicted["data"]) == set(arrays())
    assert planned == {"path": str(path), "compute_units": ct.ComputeUnit.CPU_AND_NE}


def test_the_double_has_no_method_that_coremltools_does_not_call() -> None:
    used = {node.attr for node in _nodes(ast.Attribute) if _is_proxy(node.value)}
    for name, each in vars(make_binding(Recording())).items():
        if not name.endswith("Proxy"):
            continue
        methods = {key for key in vars(each) if not key.startswith("_") and callable(getattr(each, key))}
        assert methods <= used, name


def test_the_double_is_made_with_as_many_arguments() -> None:
    calls = [node for node in _nodes(ast.Call) if getattr(node.func, "id", "") == "_MLModelProxy"]
    double = inspect.signature(make_binding(Recording())._MLModelProxy)
    assert len(calls) == 2
    for call in calls:
        double.bind(*call.args)
        assert len(call.args) == len(double.parameters)


def test_the_double_stands_where_coremltools_looks(mac: Recording) -> None:
    import coremltools.models._compiled_model as compiled
    import coremltools.models.model as model
    from coremltools.libcoremlpython import _MLModelProxy

    assert compiled._MLModelProxy is model._MLModelProxy is _MLModelProxy


def _nodes(kind: type[Any]) -> list[Any]:
    import coremltools.models.model as model

    folder = Path(str(model.__file__)).parent
    trees = [ast.parse((folder / name).read_text(encoding="utf-8")) for name in SOURCES]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, kind)]


def _is_proxy(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in ("_MLModelProxy", "proxy", "__proxy__", "_proxy")

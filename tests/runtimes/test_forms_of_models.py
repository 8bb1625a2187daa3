"""Models with several shapes, several functions, or several parts in a row, on the reference runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderkiln.schema.errors import ModelLoadError, PredictionError
from renderkiln.worker.runtimes.mlpackage import open_package
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .programs import ct, mb, save

X = {"x": ((2, 3), "float32")}
#: torch warns of sizes that a trace takes for constants, and coremltools' own conversions of numbers warn in numpy.
TRACED = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore:Conversion of an array with ndim:DeprecationWarning"
)


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


def flexible(tmp_path: Path, shape: Any) -> ReferenceRuntime:
    """Splits channels into two groups, whatever the size: shapes are computed when it runs."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(4, 8, 3, padding=1)
            self.norm = torch.nn.GroupNorm(2, 8)

        def forward(self, x: Any) -> Any:
            y = self.norm(self.conv(x))
            b, c, h, w = y.shape
            return torch.nn.functional.interpolate(y.reshape(b, c, h * w).reshape(b, c, h, w), scale_factor=2.0)

    torch.manual_seed(0)
    model = Model().eval()
    traced = torch.jit.trace(model, torch.zeros(1, 4, 8, 8))
    converted = ct.convert(
        traced,
        inputs=[ct.TensorType("x", shape=shape, dtype=np.float32)],
        outputs=[ct.TensorType("y", dtype=np.float32)],
        minimum_deployment_target=ct.target.macOS13,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    converted.save(str(tmp_path / "flexible.mlpackage"))
    runtime = ReferenceRuntime.load(tmp_path / "flexible.mlpackage")
    for size in ((1, 4, 8, 8), (1, 4, 12, 8)):
        x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        [got] = runtime.predict({"x": x}).values()
        with torch.no_grad():
            np.testing.assert_allclose(got, model(torch.from_numpy(x)).numpy(), atol=1e-4)
    return runtime


@TRACED
def test_enumerated_shapes(tmp_path: Path) -> None:
    shapes = [(1, 4, 8, 8), (1, 4, 12, 8)]
    runtime = flexible(tmp_path, ct.EnumeratedShapes(shapes=shapes, default=shapes[0]))
    assert set(runtime.inputs["x"].shapes) == set(shapes)
    assert runtime.inputs["x"].shapes[0] == shapes[0]
    with pytest.raises(PredictionError, match=r"must be of shape \(1, 4, 8, 8\) or"):
        runtime.predict({"x": zeros(1, 4, 8, 12)})


@TRACED
def test_ranges_of_shapes(tmp_path: Path) -> None:
    side = ct.RangeDim(lower_bound=8, upper_bound=12, default=8)
    runtime = flexible(tmp_path, (1, 4, side, side))
    assert runtime.inputs["x"].shapes == ()
    with pytest.raises(PredictionError, match=r"must be of shape \(1, 4, 8 … 12, 8 … 12\), and is \(1, 4, 8, 13\)"):
        runtime.predict({"x": zeros(1, 4, 8, 13)})


def test_several_functions_over_one_weight_file(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    paths = []
    for name, sign in (("plus", 1.0), ("minus", -1.0)):
        inputs = {"x": ((1, 32), "float32")}

        def build(x: Any, sign: float = sign) -> Any:
            return mb.mul(x=mb.linear(x=x, weight=weight), y=sign, name="y")

        paths.append(save(tmp_path / name, build, inputs))
    description = ct.utils.MultiFunctionDescriptor()
    for name, path in zip(("plus", "minus"), paths, strict=True):
        description.add_function(str(path), src_function_name="main", target_function_name=name)
    description.default_function_name = "minus"
    both = tmp_path / "both.mlpackage"
    ct.utils.save_multifunction(description, str(both))
    x = np.ones((1, 32), np.float32)
    want = x @ weight.T
    for name, sign in (("plus", 1), ("minus", -1), (None, -1)):
        [got] = ReferenceRuntime.load(both, function=name).predict({"x": x}).values()
        np.testing.assert_allclose(got, sign * want, atol=1e-5)
    with pytest.raises(ModelLoadError, match=r"no function 'times'; it has: minus, plus"):
        ReferenceRuntime.load(both, function="times")


def test_a_function_that_is_not_there(tmp_path: Path) -> None:
    path = save(tmp_path, lambda x: mb.relu(x=x), X)
    with pytest.raises(ModelLoadError, match="no function 'other'"):
        ReferenceRuntime.load(path, function="other")
    assert ReferenceRuntime.load(path, function="main").outputs


def _pipeline(tmp_path: Path) -> tuple[Path, Any]:
    first = save(tmp_path / "a", lambda x: [mb.add(x=x, y=1.0, name="h"), mb.exp(x=x, name="e")], X)
    inputs = {"h": ((2, 3), "float32"), "e": ((2, 3), "float32"), "x": ((2, 3), "float32")}
    second = save(tmp_path / "b", lambda h, e, x: mb.add(x=mb.mul(x=h, y=e), y=x, name="y"), inputs)
    models = [ct.models.MLModel(str(path), skip_model_load=True) for path in (first, second)]
    pipeline = ct.utils.make_pipeline(*models)
    path = tmp_path / "pipeline.mlpackage"
    pipeline.save(str(path))
    return path, open_package(path).read_spec()


def test_pipelines(tmp_path: Path) -> None:
    path, spec = _pipeline(tmp_path)
    assert spec.WhichOneof("Type") == "pipeline"
    runtime = ReferenceRuntime.load(path)
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    got = runtime.predict({"x": x})
    assert set(runtime.inputs) == {"x"}
    np.testing.assert_allclose(got["y"], (x + 1) * np.exp(x) + x, atol=1e-5)
    with pytest.raises(ModelLoadError, match="no function"):
        ReferenceRuntime.load(path, function="main")


def test_a_pipeline_whose_models_do_not_fit(tmp_path: Path) -> None:
    path, spec = _pipeline(tmp_path)
    del spec.pipeline.models[0]
    open_package(path).spec_path.write_bytes(spec.SerializeToString())
    with pytest.raises(ModelLoadError, match=r"model 0 of the pipeline takes \w, which nothing gives it"):
        ReferenceRuntime.load(path)

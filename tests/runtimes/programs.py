"""Makes small ML programs with coremltools' builder, saves them as packages, and evaluates them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from renderkiln.worker.runtimes.mlpackage import model_proto

model_proto()  # imports coremltools without its remarks

import coremltools as ct  # noqa: E402
from coremltools.converters.mil import Builder as mb  # noqa: E402, N813
from coremltools.converters.mil.backend.mil.load import load as to_proto  # noqa: E402
from coremltools.converters.mil.mil import Function, Program, types  # noqa: E402

from renderkiln.worker.runtimes.reference import ReferenceRuntime  # noqa: E402

__all__ = ["Build", "close", "ct", "evaluate", "mb", "save", "save_spec", "spec_of", "types"]

#: Takes the inputs by name, gives the outputs.
Build = Callable[..., Any]
TYPES = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32}
VERSIONS = {ct.target.macOS12: 6, ct.target.macOS13: 7, ct.target.macOS14: 8, ct.target.macOS15: 9}


def spec_of(
    build: Build, inputs: Mapping[str, tuple[Sequence[int], str]], weights: Path, target: Any = ct.target.macOS15
) -> Any:
    """The spec of a program, nothing optimised; its larger constants go to a file in the folder `weights`.

    Args:
        build: takes the inputs, as variables of the builder, gives one output or several; none may be an input.
        inputs: shape and dtype by name.
    """
    placeholders = {name: mb.placeholder(tuple(shape), TYPES[dtype]) for name, (shape, dtype) in inputs.items()}
    with Function(placeholders, opset_version=target) as function:
        made = build(**function.inputs)
        outputs = list(made) if isinstance(made, (list, tuple)) else [made]
        whole = (types.bool, types.int8, types.uint8, types.int16, types.uint16)
        outputs = [mb.cast(x=each, dtype="int32") if each.dtype in whole else each for each in outputs]
        function.set_outputs(outputs)
    program = Program()
    program.add_function("main", function)
    program.skip_all_passes = True
    return to_proto(program, str(weights), specification_version=VERSIONS[target])


def save_spec(spec: Any, path: Path, weights: Path) -> Path:
    ct.models.utils.save_spec(spec, str(path), weights_dir=str(weights))
    return path


def save(
    folder: Path, build: Build, inputs: Mapping[str, tuple[Sequence[int], str]], target: Any = ct.target.macOS15
) -> Path:
    """A package of the program in `spec_of`."""
    weights = folder / "weights"
    weights.mkdir(parents=True)
    return save_spec(spec_of(build, inputs, weights, target), folder / "model.mlpackage", weights)


def evaluate(build: Build, target: Any = ct.target.macOS15, /, **inputs: Any) -> list[Any]:
    """What the reference runtime makes of a program on these arrays: its outputs in order."""
    with tempfile.TemporaryDirectory() as name:
        described = {key: (array.shape, str(array.dtype)) for key, array in inputs.items()}
        runtime = ReferenceRuntime.load(save(Path(name), build, described, target))
        return list(runtime.predict(inputs).values())


def close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """Sees that shapes are equal and numbers nearly."""
    want = np.asarray(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    if np.issubdtype(got.dtype, np.integer):
        np.testing.assert_array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)

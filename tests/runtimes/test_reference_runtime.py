"""The runtime as a whole: strictness, arithmetic, freeing, flexible shapes, functions, pipelines."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from renderkiln.schema.errors import ModelLoadError, PredictionError, UnsupportedOpError
from renderkiln.worker.runtimes.base import TensorInfo
from renderkiln.worker.runtimes.reference import ReferenceRuntime

from .programs import Build, mb, save, save_spec, spec_of

X = {"x": ((2, 3), "float32")}


def zeros(*shape: int, dtype: Any = np.float32) -> Any:
    return np.zeros(shape, dtype)


def operations(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def changed(tmp_path: Path, build: Build, change: Callable[[Any], None], inputs: Any = X) -> Path:
    """A package whose spec was changed after it was made."""
    weights = tmp_path / "weights"
    weights.mkdir(exist_ok=True)
    spec = spec_of(build, inputs, weights)
    change(spec)
    return save_spec(spec, tmp_path / "changed.mlpackage", weights)


# What it takes and gives


def test_inputs_and_outputs_by_name(tmp_path: Path) -> None:
    def build(a: Any, b: Any) -> Any:
        return [mb.relu(x=a, name="first"), mb.add(x=b, y=1, name="second")]

    runtime = ReferenceRuntime.load(save(tmp_path, build, {"a": ((2,), "float16"), "b": ((3, 1), "int32")}))
    assert dict(runtime.inputs) == {
        "a": TensorInfo(name="a", dtype="float16", shapes=((2,),)),
        "b": TensorInfo(name="b", dtype="int32", shapes=((3, 1),)),
    }
    assert [(each.name, each.dtype, each.shapes) for each in runtime.outputs.values()] == [
        ("first", "float16", ((2,),)),
        ("second", "int32", ((3, 1),)),
    ]
    got = runtime.predict({"a": zeros(2, dtype=np.float16), "b": zeros(3, 1, dtype=np.int32)})
    assert {name: array.dtype for name, array in got.items()} == {"first": np.float16, "second": np.int32}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "needs the input x"),
        ({"x": zeros(2, 3), "z": zeros(1)}, "has no input 'z'"),
        ({"x": zeros(3, 2)}, r"shape \(2, 3\), and is \(3, 2\)"),
        ({"x": zeros(6)}, r"shape \(2, 3\)"),
        ({"x": zeros(2, 3, dtype=np.float16)}, "must be float32, and is float16"),
        ({"x": zeros(2, 3, dtype=np.float64)}, "must be float32, and is float64"),
        ({"x": [[0.0] * 3] * 2}, "must be a numpy array, and is list"),
    ],
)
def test_what_does_not_fit_is_refused(inputs: Any, message: str, tmp_path: Path) -> None:
    runtime = ReferenceRuntime.load(save(tmp_path, lambda x: mb.relu(x=x), X))
    with pytest.raises(PredictionError, match=message):
        runtime.predict(inputs)


def test_arrays_of_any_layout_are_taken_and_left_alone(tmp_path: Path) -> None:
    runtime = ReferenceRuntime.load(save(tmp_path, lambda x: mb.reshape(x=x, shape=[3, 2], name="y"), X))
    base = np.arange(6, dtype=np.float32)
    frozen = base.reshape(2, 3).copy()
    frozen.flags.writeable = False
    layouts = [base.reshape(2, 3), base.reshape(3, 2).T, base[::-1].reshape(2, 3), frozen, base.reshape(2, 3)[:, ::-1]]
    for x in layouts:
        before = x.copy()
        [got] = runtime.predict({"x": x}).values()
        np.testing.assert_array_equal(got, before.reshape(3, 2))
        got[:] = 9  # a view of the input would change it
        np.testing.assert_array_equal(x, before)


def test_a_constant_output_and_an_input_that_nothing_reads(tmp_path: Path) -> None:
    value = np.arange(4, dtype=np.float32)
    path = save(tmp_path, lambda x: [mb.identity(x=mb.const(val=value), name="c")], X)
    runtime = ReferenceRuntime.load(path)
    for _ in range(2):
        got = runtime.predict({"x": zeros(2, 3)})["c"]
        np.testing.assert_array_equal(got, value)
        got[:] = 5


def test_several_threads_share_one_runtime(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        for _ in range(20):
            x = mb.add(x=mb.sin(x=x), y=0.1)
        return x

    runtime = ReferenceRuntime.load(save(tmp_path, build, X))
    inputs = [np.full((2, 3), i, np.float32) for i in range(8)]
    alone = [next(iter(runtime.predict({"x": x}).values())) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda x: next(iter(runtime.predict({"x": x}).values())), inputs))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


# What it refuses


def test_an_unknown_operation_is_named(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        operations(spec)[-1].type = "fold_space"

    path = changed(tmp_path, lambda x: mb.relu(x=x, name="y"), change)
    with pytest.raises(UnsupportedOpError, match=r"changed\.mlpackage: main/y: the operation fold_space is not known"):
        ReferenceRuntime.load(path)


def test_our_own_fused_operations_are_none_of_a_model(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        operations(spec)[-1].type = "group_norm"

    with pytest.raises(UnsupportedOpError, match="group_norm is not known"):
        ReferenceRuntime.load(changed(tmp_path, lambda x: mb.relu(x=x), change))


def test_an_unknown_parameter_is_named(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        operations(spec)[-1].inputs["slope"].arguments.add().name = "x"

    with pytest.raises(UnsupportedOpError, match="its parameter slope is not known"):
        ReferenceRuntime.load(changed(tmp_path, lambda x: mb.relu(x=x), change))


def _replace_text(old: str, new: str) -> Callable[[Any], None]:
    def change(spec: Any) -> None:
        found = 0
        for operation in operations(spec):
            if operation.type == "const":
                strings = operation.attributes["val"].immediateValue.tensor.strings.values
                if list(strings) == [old]:
                    strings[0] = new
                    found += 1
        assert found

    return change


@pytest.mark.parametrize(
    ("build", "old", "new"),
    [
        (lambda x: mb.gelu(x=x, mode="EXACT"), "EXACT", "ROUGH"),
        (lambda x: mb.cast(x=x, dtype="int32"), "int32", "complex64"),
        (lambda x: mb.pad(x=x, pad=[1, 1], mode="reflect"), "reflect", "circular"),
        (
            lambda x: mb.conv(x=mb.expand_dims(x=x, axes=[0]), weight=np.ones((1, 2, 1), np.float32), pad_type="valid"),
            "valid",
            "full",
        ),
    ],
)
def test_an_unknown_value_of_a_parameter_is_named(build: Build, old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOpError, match=new):
        ReferenceRuntime.load(changed(tmp_path, build, _replace_text(old, new)))


def test_a_missing_parameter_is_named(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        del operations(spec)[-1].inputs["y"]

    with pytest.raises(ModelLoadError, match="its parameter y is missing"):
        ReferenceRuntime.load(changed(tmp_path, lambda x: mb.add(x=x, y=2.0), change))


def test_a_value_that_nothing_makes(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        operations(spec)[-1].inputs["x"].arguments[0].name = "nowhere"

    with pytest.raises(ModelLoadError, match="reads nowhere, which nothing before it makes"):
        ReferenceRuntime.load(changed(tmp_path, lambda x: mb.relu(x=x), change))


def test_an_unknown_set_of_operations(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        function = spec.mlProgram.functions["main"]
        function.block_specializations["CoreML99"].CopyFrom(function.block_specializations[function.opset])
        function.opset = "CoreML99"

    with pytest.raises(UnsupportedOpError, match="opset CoreML99"):
        ReferenceRuntime.load(changed(tmp_path, lambda x: mb.relu(x=x), change))


def test_nested_blocks_are_refused(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x), y=0.0), _true_fn=lambda: mb.relu(x=x), _false_fn=lambda: mb.sin(x=x)
        )

    with pytest.raises(UnsupportedOpError, match="operation cond holds nested blocks"):
        ReferenceRuntime.load(save(tmp_path, build, X))


def test_an_image_input_is_refused(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        spec.description.input[0].type.imageType.width = 3

    with pytest.raises(UnsupportedOpError, match="input x is of kind imageType"):
        ReferenceRuntime.load(changed(tmp_path, lambda x: mb.relu(x=x), change))


def _declare_wrong_intermediate(spec: Any) -> None:
    [node] = [each for each in operations(spec) if each.type == "transpose"]
    node.outputs[0].type.tensorType.dimensions[0].constant.size = 7


def _declare_wrong_type(spec: Any) -> None:
    [node] = [each for each in operations(spec) if each.type == "transpose"]
    node.outputs[0].type.tensorType.dataType = 23


@pytest.mark.parametrize("change", [_declare_wrong_intermediate, _declare_wrong_type])
def test_a_value_that_is_not_as_declared(change: Callable[[Any], None], tmp_path: Path) -> None:
    path = changed(tmp_path, lambda x: mb.exp(x=mb.transpose(x=x, perm=[1, 0])), change)
    runtime = ReferenceRuntime.load(path)
    with pytest.raises(PredictionError, match=r"\(transpose\) gives .* is declared"):
        runtime.predict({"x": zeros(2, 3)})


def _describe_wrong_shape(spec: Any) -> None:
    spec.description.output[0].type.multiArrayType.shape[0] = 9


def _describe_wrong_input(spec: Any) -> None:
    spec.description.input[0].type.multiArrayType.shape[:] = [2, 4]


def _describe_wrong_type(spec: Any) -> None:
    spec.description.input[0].type.multiArrayType.dataType = 65552


def _describe_wrong_name(spec: Any) -> None:
    spec.description.output[0].name = "other"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_describe_wrong_shape, r"output y is described as float32 \(9, 3\)"),
        (_describe_wrong_input, r"input x is described as float32 \(2, 4\) and declared as fp32 \(2, 3\)"),
        (_describe_wrong_type, "described as float16"),
        (_describe_wrong_name, "are not those that are described"),
    ],
)
def test_a_description_that_does_not_fit_the_program(change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=message):
        ReferenceRuntime.load(changed(tmp_path, lambda x: mb.relu(x=x, name="y"), change))


def test_an_operation_that_cannot_be_evaluated_is_named(tmp_path: Path) -> None:
    inputs = {"x": ((4,), "float32"), "i": ((1,), "int32")}
    runtime = ReferenceRuntime.load(save(tmp_path, lambda x, i: mb.gather(x=x, indices=i, axis=0, name="y"), inputs))
    with pytest.raises(PredictionError, match=r"main/y \(gather\) cannot be evaluated .* 9 … 9 on an axis of 4"):
        runtime.predict({"x": zeros(4), "i": np.array([9], np.int32)})


# Arithmetic


def test_half_precision_is_rounded_only_if_asked_for(tmp_path: Path) -> None:
    """2048 + 1 is 2048 in half precision, and so is each further step."""

    def build(x: Any) -> Any:
        for _ in range(4):
            x = mb.add(x=x, y=np.float16(1))
        return [mb.cast(x=x, dtype="fp32"), mb.mul(x=x, y=np.float16(32))]

    path = save(tmp_path, build, {"x": ((1,), "float16")})
    x = np.array([2048], np.float16)
    exact, big = ReferenceRuntime.load(path).predict({"x": x}).values()
    assert exact.tolist() == [2052]
    assert big.dtype == np.float16
    assert np.isinf(big).all()  # comes out as declared
    rounded, big = ReferenceRuntime.load(path, arithmetic="float16").predict({"x": x}).values()
    assert rounded.tolist() == [2048]
    assert np.isinf(big).all()


def test_single_precision_stays_single_under_half_arithmetic(tmp_path: Path) -> None:
    path = save(tmp_path, lambda x: mb.add(x=x, y=np.float32(1)), {"x": ((1,), "float32")})
    [got] = ReferenceRuntime.load(path, arithmetic="float16").predict({"x": np.array([2048], np.float32)}).values()
    assert got.tolist() == [2049]


def test_a_cast_to_half_precision_rounds_under_half_arithmetic(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32")

    path = save(tmp_path, build, {"x": ((1,), "float32")})
    x = np.array([2049], np.float32)
    assert ReferenceRuntime.load(path).predict({"x": x}).popitem()[1].tolist() == [2049]
    assert ReferenceRuntime.load(path, arithmetic="float16").predict({"x": x}).popitem()[1].tolist() == [2048]


def test_an_unknown_arithmetic(tmp_path: Path) -> None:
    path = save(tmp_path, lambda x: mb.relu(x=x), X)
    with pytest.raises(ValueError, match="bfloat16"):
        ReferenceRuntime.load(path, arithmetic="bfloat16")  # type: ignore[arg-type]


# Freeing


def test_values_are_freed_after_their_last_use(tmp_path: Path) -> None:
    def chain(x: Any) -> Any:
        for _ in range(50):
            x = mb.sin(x=x)
        return x

    runtime = ReferenceRuntime.load(save(tmp_path / "chain", chain, X))
    assert runtime.peak_values == 2

    def kept(x: Any) -> Any:
        first = mb.exp(x=x)
        y = first
        for _ in range(50):
            y = mb.sin(x=y)
        return mb.add(x=y, y=first)

    assert ReferenceRuntime.load(save(tmp_path / "kept", kept, X)).peak_values == 3


def test_a_result_that_nothing_reads_is_freed_at_once(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        for _ in range(10):
            mb.exp(x=x)
        first, _, _ = mb.split(x=x, num_splits=3, axis=1)
        return mb.sin(x=first)

    assert ReferenceRuntime.load(save(tmp_path, build, X)).peak_values <= 4

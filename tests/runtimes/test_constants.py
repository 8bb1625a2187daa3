"""Constants: from the spec, from weight files, packed and compressed, against what coremltools makes of them."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.runtimes.reference import ReferenceRuntime
from renderkiln.worker.runtimes.reference.weights import unpack

from .programs import close, ct, evaluate, mb, save, types

NONE = np.zeros((1,), np.float32)


@settings(max_examples=50)
@given(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 40), st.booleans(), st.integers(0, 99))
def test_what_is_packed_comes_back(bits: int, count: int, signed: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    values = random.integers(low, high, count)
    stream = "".join(format(value % 2**bits, f"0{bits}b")[::-1] for value in values)
    packed = bytes(int(stream[at : at + 8][::-1], 2) for at in range(0, len(stream), 8))
    got = unpack(np.frombuffer(packed, np.uint8), bits, count, signed)
    np.testing.assert_array_equal(got, values)
    assert got.dtype == (np.int8 if signed else np.uint8)


def whole(name: str, *shape: int, seed: int = 0) -> Any:
    """Random whole numbers of a type of coremltools, less than a byte or not."""
    kind = getattr(types, name)
    bits = kind.get_bitwidth()
    low, high = (0, 2**bits) if name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    return np.random.default_rng(seed).integers(low, high, shape).astype(types.nptype_from_builtin(kind))


def table(*shape: int, dtype: Any = np.float16, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check(make: Any, target: Any) -> None:
    """A constant added to nothing, against what coremltools decodes it to."""
    decoded: list[Any] = []

    def build(x: Any) -> Any:
        made = make()
        value = made.op.materialized_val_inference()
        decoded.append(value[1] if isinstance(value, tuple) else value)
        return mb.add(x=mb.cast(x=made, dtype="fp32"), y=x)

    [got] = evaluate(build, target, x=NONE)
    close(got, decoded[0].astype(np.float32), 1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_affine(dtype: Any, kind: str, axis: int) -> None:
    data = whole(kind, 4, 4, 8)
    size = data.shape[axis]
    scale, zero = np.abs(table(size, dtype=dtype)), whole(kind, size, seed=2)
    check(
        lambda: mb.constexpr_affine_dequantize(quantized_data=data, zero_point=zero, scale=scale, axis=axis),
        ct.target.macOS13,
    )
    number = mb.constexpr_affine_dequantize
    check(lambda: number(quantized_data=data, zero_point=zero[0], scale=scale[0], axis=axis), ct.target.macOS13)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_a_table_in_the_old_form(bits: int) -> None:
    shape = np.array([3, 5, 7], np.uint32)
    packed = whole("uint8", -(-105 * bits // 8))
    lut = table(2**bits)
    check(lambda: mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=shape), ct.target.macOS13)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("groups", [(1, 1), (4, 1), (2, 3)])
def test_tables_for_groups(bits: int, groups: tuple[int, int]) -> None:
    indices, lut = whole(f"uint{bits}", 8, 6), table(*groups, 2**bits, 1)
    check(lambda: mb.constexpr_lut_to_dense(indices=indices, lut=lut), ct.target.macOS15)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_tables_of_vectors(axis: int) -> None:
    indices, lut = whole("uint4", 4, 6, 2), table(2, 1, 1, 16, 3)
    axis_value = np.int32(axis)
    if axis >= 0:  # coremltools decodes no negative axis
        check(lambda: mb.constexpr_lut_to_dense(indices=indices, lut=lut, vector_axis=axis_value), ct.target.macOS15)


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("offset", [True, False])
def test_blocks(kind: str, offset: bool) -> None:
    data, scale = whole(kind, 8, 6, 4), np.abs(table(4, 3, 1))
    extra = {"offset": whole(kind, 4, 3, 1, seed=3)} if offset else {}
    check(lambda: mb.constexpr_blockwise_shift_scale(data=data, scale=scale, **extra), ct.target.macOS15)


def test_sparse_constants_in_both_forms() -> None:
    mask = whole("uint1", 5, 7)
    values = table(int(mask.sum()))
    check(lambda: mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask), ct.target.macOS15)
    packed = np.packbits(mask.reshape(-1).astype(np.uint8), bitorder="little")
    shape = np.array([5, 7], np.uint32)
    check(lambda: mb.constexpr_sparse_to_dense(nonzero_data=values, mask=packed, shape=shape), ct.target.macOS13)


def test_joint_forms() -> None:
    mask = whole("uint1", 4, 6)
    count = int(mask.sum())

    def sparse_table() -> Any:
        where, values = mb.constexpr_lut_to_sparse(
            indices_mask=mask, indices_nonzero_data=whole("uint2", count), lut=table(2, 1, 4, 1)
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where)

    def sparse_blocks() -> Any:
        where, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask,
            nonzero_data=whole("int4", count),
            scale=np.abs(table(4, 1)),
            offset=whole("int4", 4, 1, seed=3),
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where)

    for make in (sparse_table, sparse_blocks):
        check(make, ct.target.macOS15)


def test_a_table_that_is_compressed_itself() -> None:
    indices, entries, scale = whole("uint2", 4, 6), whole("int8", 1, 1, 4, 1), table(1, 1, 1, 1)

    def build(x: Any) -> Any:
        lut = mb.constexpr_blockwise_shift_scale(data=entries, scale=scale)
        made = mb.constexpr_lut_to_dense(indices=indices, lut=lut)
        return mb.add(x=mb.cast(x=made, dtype="fp32"), y=x)

    [got] = evaluate(build, x=NONE)
    close(got, (entries.reshape(-1) * scale.astype(np.float32).reshape(-1))[indices], 1e-3)


def test_a_cast_constant() -> None:
    value = table(40, 40)
    check(lambda: mb.constexpr_cast(source_val=value, output_dtype="fp32"), ct.target.macOS13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32])
@pytest.mark.parametrize("size", [2, 40])
def test_plain_constants_small_and_large(dtype: Any, size: int, tmp_path: Path) -> None:
    """The larger ones lie in the weight file, the smaller ones in the spec."""
    value = (table(size, size, dtype=np.float32) * 100).astype(dtype)
    zero = np.zeros((1,), dtype)

    path = save(tmp_path, lambda x: mb.add(x=value, y=x), {"x": ((1,), str(np.dtype(dtype)))})
    [got] = ReferenceRuntime.load(path).predict({"x": zero}).values()
    np.testing.assert_array_equal(got, value)


def test_weights_are_used_where_they_lie_and_never_written(tmp_path: Path) -> None:
    value = table(64, 64, dtype=np.float32)
    path = save(tmp_path, lambda x: mb.add(x=x, y=value), {"x": ((64, 64), "float32")})
    [weights] = path.rglob("weight.bin")
    before = weights.read_bytes()
    runtime = ReferenceRuntime.load(path)
    got = runtime.predict({"x": np.zeros((64, 64), np.float32)})
    [array] = got.values()
    array[:] = 7
    [again] = runtime.predict({"x": np.zeros((64, 64), np.float32)}).values()
    np.testing.assert_array_equal(again, value)
    assert weights.read_bytes() == before


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_palettized_by_coremltools(bits: int, tmp_path: Path) -> None:
    value = table(64, 64, dtype=np.float32)
    path = save(tmp_path, lambda x: mb.linear(x=x, weight=value), {"x": ((1, 64), "float32")}, ct.target.macOS13)
    config = ct.optimize.coreml.OpPalettizerConfig(mode="uniform", nbits=bits, weight_threshold=1)
    model = ct.models.MLModel(str(path), skip_model_load=True)
    small = ct.optimize.coreml.palettize_weights(model, ct.optimize.coreml.OptimizationConfig(global_config=config))
    small.save(str(tmp_path / "small.mlpackage"))
    del small, model
    gc.collect()
    runtime = ReferenceRuntime.load(tmp_path / "small.mlpackage")
    [got] = runtime.predict({"x": np.eye(64, dtype=np.float32)[:1]}).values()
    assert len(np.unique(got)) <= 2**bits
    assert np.abs(got - value[:, 0]).max() <= np.ptp(value) / 2**bits + 1e-3


def test_a_table_that_is_too_small_for_its_indices(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        made = mb.constexpr_lut_to_dense(indices=whole("uint2", 4, 6), lut=table(1, 1, 4, 1))
        return mb.add(x=made, y=x)

    path = save(tmp_path, build, {"x": ((1,), "float16")})
    spec = ct.models.utils.load_spec(str(path))
    block = next(iter(spec.mlProgram.functions["main"].block_specializations.values()))
    [node] = [each for each in block.operations if each.type == "constexpr_lut_to_dense"]
    node.outputs[0].type.tensorType.dimensions[0].constant.size = 5
    ct.models.utils.save_spec(spec, str(tmp_path / "lies.mlpackage"), weights_dir=str(tmp_path / "weights"))
    with pytest.raises(ModelLoadError, match=r"should be of shape \(5, 6\)"):
        ReferenceRuntime.load(tmp_path / "lies.mlpackage")

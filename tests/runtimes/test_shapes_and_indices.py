"""Reshaping, slicing, joining, padding, gathering and scattering against numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional

from .programs import close, ct, evaluate, mb
from .test_elementwise import MODEST, draw

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)


def test_reshape() -> None:
    x = draw(0, 2, 3, 4)

    def build(x: Any) -> Any:
        sizes = mb.shape(x=x)
        turned = mb.reverse(x=sizes, axes=[0])
        targets: list[Any] = [[4, 6], [-1], [2, -1, 2], [0, -1, 0], [0, 0, 4], [1, 24, 1], turned]
        return [mb.reshape(x=x, shape=target) for target in targets]

    want = [(4, 6), (24,), (2, 6, 2), (2, 3, 4), (2, 3, 4), (1, 24, 1), (4, 3, 2)]
    for got, shape in zip(evaluate(build, x=x), want, strict=True):
        close(got, x.reshape(shape))


@MODEST
@given(SHAPES, st.data())
def test_axes_come_go_and_change_places(shape: Any, data: Any) -> None:
    rank = len(shape)
    order = data.draw(st.permutations(range(rank)))
    signed = [axis - rank if data.draw(st.booleans()) else axis for axis in order]
    new = data.draw(
        st.lists(st.integers(-rank - 2, rank + 1), min_size=2, max_size=2, unique_by=lambda a: a % (rank + 2))
    )
    flipped = list(data.draw(hnp.valid_tuple_axes(rank, min_size=1)))
    x = draw(rank, *shape)

    def build(x: Any) -> Any:
        wide = mb.expand_dims(x=x, axes=new)
        flat = [mb.flatten2d(x=x, axis=rank // 2), mb.shape(x=x)]
        return [
            mb.transpose(x=x, perm=signed),
            wide,
            mb.squeeze(x=wide, axes=new),
            mb.reverse(x=x, axes=flipped),
            *flat,
        ]

    turned, wide, narrow, mirrored, flat, sizes = evaluate(build, x=x)
    close(turned, x.transpose(order))
    close(wide, np.expand_dims(x, tuple(new)))
    close(narrow, x)
    close(mirrored, np.flip(x, flipped))
    close(flat, x.reshape(int(np.prod(shape[: rank // 2])), -1))
    close(sizes, shape)


def test_squeeze_takes_only_axes_of_size_one() -> None:
    x = draw(0, 1, 3, 1, 2)
    [a] = evaluate(lambda x: mb.squeeze(x=x), x=x)
    close(a, x.reshape(3, 2))


@MODEST
@given(hnp.array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=5), st.booleans(), st.data())
def test_slices_by_index(shape: Any, computed: bool, data: Any) -> None:
    begins, ends, strides, index = [], [], [], []
    masks: dict[str, list[bool]] = {"begin_mask": [], "end_mask": [], "squeeze_mask": []}
    for size in shape:
        stride = data.draw(st.sampled_from([1, 2, -1, -2]))
        first, last = sorted(data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=2, unique=True)))
        if stride < 0:
            first, last = last, first
        open_begin, open_end = data.draw(st.booleans()), data.draw(st.booleans())
        squeezed = data.draw(st.booleans()) and not computed and stride > 0 and not open_begin
        negative = data.draw(st.booleans())
        begins.append(first - size if negative else first)
        ends.append(last)
        strides.append(stride)
        for name, value in zip(masks, (open_begin, open_end, squeezed), strict=True):
            masks[name].append(value)
        if squeezed:
            index.append(first)
        else:
            index.append(slice(None if open_begin else first, None if open_end else last, stride))
    x = draw(3, *shape)
    # The builder cannot tell the shape where everything is squeezed out: a number is a scalar there.
    inputs: dict[str, Any] = {"x": x}
    if computed:
        inputs |= {"begin": np.array(begins, np.int32), "end": np.array(ends, np.int32)}

    def build(x: Any, begin: Any = begins, end: Any = ends) -> Any:
        return mb.slice_by_index(x=x, begin=begin, end=end, stride=strides, **masks)

    close(evaluate(build, **inputs)[0], x[tuple(index)])


@MODEST
@given(hnp.array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=5), st.data())
def test_slices_by_size_and_updates(shape: Any, data: Any) -> None:
    begin = [data.draw(st.integers(0, size - 1)) for size in shape]
    count = [data.draw(st.integers(1, size - at)) for size, at in zip(shape, begin, strict=True)]
    end = [at + number for at, number in zip(begin, count, strict=True)]
    index = tuple(slice(a, b) for a, b in zip(begin, end, strict=True))
    x, update = draw(1, *shape), draw(2, *count)
    rest = [-1 if data.draw(st.booleans()) else number for number in count]

    def build(x: Any, update: Any) -> Any:
        changed = mb.slice_update(x=x, update=update, begin=begin, end=end)
        return [mb.slice_by_size(x=x, begin=begin, size=count), mb.slice_by_size(x=x, begin=begin, size=rest), changed]

    part, to_end, changed = evaluate(build, x=x, update=update)
    close(part, x[index])
    ends = tuple(slice(a, None if n == -1 else a + n) for a, n in zip(begin, rest, strict=True))
    close(to_end, x[ends])
    want = x.copy()
    want[index] = update
    close(changed, want)


@MODEST
@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4), st.data())
def test_joining_and_splitting(shape: Any, data: Any) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x, y = draw(1, *shape), draw(2, *shape)
    size = 2 * shape[axis]
    parts = [1, size - 1]

    def build(x: Any, y: Any) -> Any:
        both = mb.concat(values=[x, y], axis=axis)
        mixed = mb.concat(values=[x, y], axis=axis, interleave=True)
        piles = [mb.stack(values=[x, y], axis=axis), mb.tile(x=x, reps=[2] * len(shape))]
        halves = mb.split(x=both, num_splits=2, axis=axis)
        return [both, mixed, *piles, *halves, *mb.split(x=both, split_sizes=parts, axis=axis)]

    got = evaluate(build, x=x, y=y)
    both = np.concatenate([x, y], axis)
    at = axis % len(shape)
    mixed = np.stack([x, y], at + 1).reshape(both.shape)
    want = [both, mixed, np.stack([x, y], axis), np.tile(x, [2] * len(shape)), x, y, *np.split(both, [1], axis)]
    for one, expected in zip(got, want, strict=True):
        close(one, expected)


@MODEST
@given(hnp.array_shapes(min_dims=1, max_dims=4, min_side=2, max_side=4), st.integers(1, 4), st.booleans(), st.data())
def test_padding(shape: Any, count: int, computed: bool, data: Any) -> None:
    count = len(shape) if computed else min(count, len(shape))
    amounts = data.draw(st.lists(st.integers(0, 1), min_size=2 * count, max_size=2 * count))
    x = draw(4, *shape)
    inputs: dict[str, Any] = {"x": x} | ({"pad": np.array(amounts, np.int32)} if computed else {})

    def build(x: Any, pad: Any = amounts) -> Any:
        kinds = [mb.pad(x=x, pad=pad, mode=mode) for mode in ("reflect", "replicate")]
        return [mb.pad(x=x, pad=pad, mode="constant", constant_val=0.5), *kinds]

    widths = [(0, 0)] * (len(shape) - count) + list(zip(amounts[::2], amounts[1::2], strict=True))
    number, mirror, edge = evaluate(build, **inputs)
    close(number, np.pad(x, widths, constant_values=0.5))
    close(mirror, np.pad(x, widths, "reflect"))
    close(edge, np.pad(x, widths, "edge"))


@MODEST
@given(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4), st.booleans(), st.booleans(), st.data())
def test_sums_so_far_sorting_and_bands(shape: Any, exclusive: bool, backwards: bool, data: Any) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    k = data.draw(st.integers(1, shape[axis]))
    lower, upper = data.draw(st.integers(-1, 2)), data.draw(st.integers(-1, 2))
    x = draw(5, *shape)
    square = draw(6, *shape, 3)

    def build(x: Any, square: Any) -> Any:
        total = mb.cumsum(x=x, axis=axis, exclusive=exclusive, reverse=backwards)
        most, where = mb.topk(x=x, k=k, axis=axis)
        least, _ = mb.topk(x=x, k=k, axis=axis, ascending=True)
        order = mb.argsort(x=x, axis=axis, ascending=True)
        return [total, most, where, least, order, mb.band_part(x=square, lower=lower, upper=upper)]

    total, most, where, least, order, band = evaluate(build, x=x, square=square)
    turned = np.flip(x, axis) if backwards else x
    want = np.cumsum(turned, axis)
    want = want - turned if exclusive else want
    close(total, np.flip(want, axis) if backwards else want, 1e-4)
    high = np.argsort(-x, axis, kind="stable").take(range(k), axis)
    close(where, high)
    close(most, np.take_along_axis(x, high, axis))
    close(order, np.argsort(x, axis, kind="stable"))
    close(least, np.sort(x, axis).take(range(k), axis))
    rows, columns = np.indices(square.shape[-2:])
    kept = ((lower < 0) | (rows - columns <= lower)) & ((upper < 0) | (columns - rows <= upper))
    close(band, square * kept)


def test_making_new_tensors() -> None:
    n = np.array([3], np.int32)
    x = draw(0, 2, 3)

    def build(n: Any, x: Any) -> Any:
        one = mb.squeeze(x=n, axes=[0])
        filled = [mb.fill(shape=mb.concat(values=[n, n], axis=0), value=0.5), mb.fill_like(ref_tensor=x, value=2.0)]
        hot = mb.one_hot(indices=n, one_hot_vector_size=5, axis=-1, on_value=2.0, off_value=-1.0)
        first = mb.one_hot(indices=n, one_hot_vector_size=5, axis=0)
        numbers = mb.range_1d(start=0, end=one, step=1)
        pair = mb.concat(values=[one, mb.add(x=one, y=1)], axis=0)
        return [*filled, hot, first, numbers, pair, mb.non_zero(x=x)]

    half, twos, hot, first, numbers, pair, where = evaluate(build, n=n, x=x)
    close(half, np.full((3, 3), 0.5, np.float32))
    close(twos, np.full((2, 3), 2, np.float32))
    close(hot, np.array([[-1, -1, -1, 2, -1]], np.float32))
    close(first, np.array([[0], [0], [0], [1], [0]]))
    close(numbers, [0, 1, 2])
    close(pair, [3, 4])
    close(where, np.argwhere(x))


def test_space_and_depth() -> None:
    x = draw(0, 2, 8, 4, 6)

    def build(x: Any) -> Any:
        back = mb.space_to_depth(x=mb.depth_to_space(x=x, block_size=2), block_size=2)
        shuffles = [mb.pixel_shuffle(x=x, upscale_factor=2), mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2))]
        return [back, mb.depth_to_space(x=x, block_size=2), *shuffles, mb.sliding_windows(x=x, axis=2, size=3)]

    back, space, shuffled, unshuffled, windows = evaluate(build, x=x)
    close(back, x)
    # Channel = (row in block, column in block, channel), as TensorFlow orders it.
    assert space[0, 1, 2, 3] == x[0, (0 * 2 + 1) * 2 + 1, 1, 1]
    t = torch.from_numpy(x)
    close(shuffled, functional.pixel_shuffle(t, 2).numpy())
    close(unshuffled, functional.pixel_unshuffle(t, 2).numpy())
    close(windows, np.stack([x[:, :, i : i + 3] for i in range(2)], 2))


@MODEST
@given(
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
    hnp.array_shapes(min_dims=0, max_dims=2, max_side=3),
    st.data(),
)
def test_gathering(shape: Any, many: Any, data: Any) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    size = shape[axis]
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = draw(7, *shape)
    indices = random.integers(-size, size, many or (1,)).astype(np.int32)
    along = random.integers(-size, size, shape).astype(np.int32)
    points = random.integers(0, shape[0], (2, 1)).astype(np.int32)

    def build(x: Any, indices: Any, along: Any, points: Any) -> Any:
        plain = mb.gather(x=x, indices=indices, axis=axis)
        return [plain, mb.gather_along_axis(x=x, indices=along, axis=axis), mb.gather_nd(x=x, indices=points)]

    plain, each, nd = evaluate(build, x=x, indices=indices, along=along, points=points)
    close(plain, x.take(indices, axis))
    close(each, np.take_along_axis(x, along % size, axis))
    close(nd, x[points[:, 0]])


def test_gathering_within_a_batch() -> None:
    x, indices = draw(0, 2, 3, 4, 5), np.array([[0, -1], [2, 1]], np.int32)
    places = np.array([[[0, 1], [2, 3]], [[1, 1], [0, 0]]], np.int32)

    def build(x: Any, indices: Any, places: Any) -> Any:
        nd = mb.gather_nd(x=x, indices=places, batch_dims=1)
        return [mb.gather(x=x, indices=indices, axis=a, batch_dims=1) for a in (1, 2)] + [nd]

    first, second, nd = evaluate(build, ct.target.macOS13, x=x, indices=indices, places=places)
    close(first, np.stack([x[b].take(indices[b], 0) for b in range(2)]))
    close(second, np.stack([x[b].take(indices[b], 1) for b in range(2)]))
    close(nd, np.stack([x[b][places[b, :, 0], places[b, :, 1]] for b in range(2)]))


SCATTER: dict[str, Any] = {
    "update": lambda old, new: new,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
}


@pytest.mark.parametrize("target", [ct.target.macOS13, ct.target.macOS14])
@pytest.mark.parametrize("axis", [0, -1])
def test_scattering(target: Any, axis: int) -> None:
    data, updates = draw(0, 4, 4), np.abs(draw(1, 2, 4)) + 0.5
    updates = updates if axis == 0 else updates.T.copy()
    indices = np.array([3, 1], np.int32)
    along = np.broadcast_to(indices[:, None] if axis == 0 else indices, updates.shape).astype(np.int32).copy()
    points = np.array([[3, 0], [1, 2]], np.int32)
    values = np.array([2, 3], np.float32)

    def build(data: Any, updates: Any, values: Any) -> Any:
        made = []
        for mode in SCATTER:
            made.append(mb.scatter(data=data, indices=indices, updates=updates, axis=axis, mode=mode))
            made.append(mb.scatter_along_axis(data=data, indices=along, updates=updates, axis=axis, mode=mode))
            made.append(mb.scatter_nd(data=data, indices=points, updates=values, mode=mode))
        return made

    got = iter(evaluate(build, target, data=data, updates=updates, values=values))
    where: Any = (indices,) if axis == 0 else (slice(None), indices)
    for change in SCATTER.values():
        whole, points_changed = data.copy(), data.copy()
        whole[where] = change(data[where], updates)
        points_changed[points[:, 0], points[:, 1]] = change(data[points[:, 0], points[:, 1]], values)
        close(next(got), whole)
        close(next(got), whole)
        close(next(got), points_changed)


def test_resizing() -> None:
    x = draw(0, 2, 3, 5, 4)
    modes = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "UNALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS")
    size: dict[str, Any] = {"target_size_height": 7, "target_size_width": 9}
    scale: dict[str, Any] = {"scale_factor_height": 2, "scale_factor_width": 3}

    def build(x: Any) -> Any:
        smooth = [mb.resize_bilinear(x=x, sampling_mode=mode, **size) for mode in modes]
        scaled = [mb.upsample_bilinear(x=x, align_corners=corners, **scale) for corners in (True, False)]
        near = [mb.upsample_nearest_neighbor(x=x, **scale), mb.resize_nearest_neighbor(x=x, **size)]
        lists = [np.array([7, 9], np.int32), np.array([3, 0, 9], np.int32)]
        kinds = [mb.resize(x=x, shape=lists[0], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS")]
        kinds.append(mb.resize(x=x, shape=lists[1], resized_dims=np.uint32(2), interpolation_mode="NEAREST_NEIGHBOR"))
        return smooth + scaled + near + kinds

    t = torch.from_numpy(x)

    def torch_resize(size: Any, mode: str, corners: bool | None = None) -> Any:
        return functional.interpolate(t, size, mode=mode, align_corners=corners).numpy()

    # Coordinates as Core ML's documentation gives them, for the two modes that torch has not.
    def points(old: int, new: int, mode: str) -> Any:
        if mode == "DEFAULT":
            return np.clip(np.arange(new) * (old - old / new) / (new - 1), 0, old - 1)
        delta = max(1, old - 1) / new
        return np.clip(0.5 * delta + np.arange(new) * delta, 0, old - 1)

    def by_hand(mode: str) -> Any:
        y = np.apply_along_axis(lambda v: np.interp(points(5, 7, mode), np.arange(5), v), 2, x)
        return np.apply_along_axis(lambda v: np.interp(points(4, 9, mode), np.arange(4), v), 3, y)

    want = [
        torch_resize((7, 9), "bilinear", True),
        torch_resize((7, 9), "bilinear", True),
        torch_resize((7, 9), "bilinear", False),
        by_hand("DEFAULT"),
        by_hand("OFFSET_CORNERS"),
        torch_resize((10, 12), "bilinear", True),
        torch_resize((10, 12), "bilinear", False),
        torch_resize((10, 12), "nearest"),
        torch_resize((7, 9), "nearest"),
        torch_resize((7, 9), "bilinear", False),
        torch_resize((5, 9), "nearest"),
    ]
    for got, expected in zip(evaluate(build, x=x), want, strict=True):
        close(got, expected.astype(np.float32), 1e-4)

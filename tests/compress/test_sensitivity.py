"""Measurements of layers, what is planned from them, and that both hold when packages are really written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from renderkiln.schema.errors import BadInputError, PredictionError
from renderkiln.worker.convert.compress.analysis import Verifier, make_plan, plan_and_verify, predicted_bytes
from renderkiln.worker.convert.compress.layers import read_graph
from renderkiln.worker.convert.compress.palettize import palettize
from renderkiln.worker.convert.compress.quality import noise, random_inputs, vocabulary
from renderkiln.worker.convert.compress.recipe import Recipe, of_layers
from renderkiln.worker.convert.compress.sensitivity import Measurements, measure
from renderkiln.worker.convert.compress.targets import Target, parse_size, parse_widths
from renderkiln.worker.runtimes.base import TensorInfo
from renderkiln.worker.runtimes.mlpackage import open_package
from renderkiln.worker.runtimes.reference import ReferenceRuntime

WIDTHS = (2, 4, 6)


@pytest.fixture(scope="module")
def measured(made: Path) -> Measurements:
    return measure(made / "small.mlpackage", WIDTHS)


def test_each_layer_is_measured_as_if_it_alone_had_been_compressed(
    made: Path, tmp_path: Path, measured: Measurements
) -> None:
    package = made / "small.mlpackage"
    runtime = ReferenceRuntime.load(package)
    inputs = random_inputs(runtime.inputs, vocabulary(read_graph(open_package(package))), 0)
    for layer in measured.layers:
        alone = palettize(package, tmp_path / f"{layer.name}.mlpackage", recipe=Recipe(layers={layer.name: 4}))
        error = noise([runtime.predict(inputs)], [ReferenceRuntime.load(alone.target).predict(inputs)])
        assert layer.errors[4] == pytest.approx(max(error.values()), rel=1e-6)
        assert layer.errors[2] > layer.errors[4] > layer.errors[6] > 0


def test_what_was_kept_is_not_measured_again(made: Path, tmp_path: Path, measured: Measurements) -> None:
    package, keep = made / "small.mlpackage", tmp_path / "kept" / "measured.json"
    told: list[tuple[str, int, int]] = []

    def tell(*what: object) -> None:
        told.append(what)  # type: ignore[arg-type]
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(package, WIDTHS, keep=keep, progress=tell)
    told.clear()
    found = measure(package, WIDTHS, keep=keep, progress=lambda *what: told.append(what))
    assert found == measured
    assert 0 < len(told) < 3 * len(WIDTHS)
    told.clear()
    assert measure(package, WIDTHS, keep=keep, progress=lambda *what: told.append(what)) == measured
    assert told == []
    assert [each.name for each in keep.parent.iterdir()] == [keep.name]


def test_measurements_of_something_else_are_refused(made: Path, tmp_path: Path) -> None:
    keep = tmp_path / "measured.json"
    measure(made / "small.mlpackage", (2,), keep=keep)
    with pytest.raises(BadInputError, match="another package"):
        measure(made / "new.mlpackage", (2,), keep=keep)
    with pytest.raises(BadInputError, match="another seed"):
        measure(made / "small.mlpackage", (2,), keep=keep, seed=1)
    keep.write_text(json.dumps({"version": 1}))
    with pytest.raises(BadInputError, match="no measurements"):
        measure(made / "small.mlpackage", (2,), keep=keep)


@pytest.mark.parametrize("kind", ["small", "new", "single"])
@pytest.mark.parametrize("part", [0.62, 0.7, 0.9])
def test_a_package_made_by_a_planned_recipe_is_not_bigger_than_asked_for(
    made: Path, tmp_path: Path, kind: str, part: float
) -> None:
    package = made / f"{kind}.mlpackage"
    # What is measured does not matter for sizes.
    plain = measure(package, (2,))
    layers = tuple(each.model_copy(update={"errors": {2: 0.1, 4: 0.01, 8: 0.001}}) for each in plain.layers)
    plan = make_plan(plain.model_copy(update={"layers": layers}), (2, 4, 8, 16), Target("part", part + 0.05))
    result = palettize(package, tmp_path / "planned.mlpackage", recipe=of_layers(plan.bits))
    assert result.bytes_after <= predicted_bytes(plain, plan.bits) <= (part + 0.05) * result.bytes_before


def test_a_quality_that_is_asked_for_is_reached_when_all_layers_are_compressed(
    made: Path, tmp_path: Path, measured: Measurements
) -> None:
    package = made / "small.mlpackage"
    verifier = Verifier(package, 1, 0)
    plan, psnr = plan_and_verify(measured, (*WIDTHS, 16), Target("psnr", 38.0), verifier)
    assert plan.psnr >= 38
    assert psnr >= 38
    # And so it is in the package that the recipe makes.
    result = palettize(package, tmp_path / "planned.mlpackage", recipe=of_layers(plan.bits))
    inputs = random_inputs(ReferenceRuntime.load(package).inputs, 300, 0)
    outputs = [ReferenceRuntime.load(path).predict(inputs) for path in (package, result.target)]
    assert max(noise(outputs[:1], outputs[1:]).values()) == pytest.approx(10 ** (-psnr / 10), rel=1e-5)


def test_targets_out_of_reach_say_what_is_in_reach(measured: Measurements) -> None:
    with pytest.raises(BadInputError, match="cannot get smaller than"):
        make_plan(measured, WIDTHS, Target("part", 0.01))
    with pytest.raises(BadInputError, match="dB"):
        make_plan(measured, WIDTHS, Target("psnr", 200))
    with pytest.raises(BadInputError, match="smallest"):
        make_plan(measured, WIDTHS, Target("bits", 1.5))


def test_an_average_of_bits_is_kept(measured: Measurements) -> None:
    plan = make_plan(measured, WIDTHS, Target("bits", 4.2))
    elements = {each.name: each.elements for each in measured.layers}
    assert sum(elements[name] * bits for name, bits in plan.bits.items()) <= 4.2 * sum(elements.values())


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("0.5x", Target("part", 0.5)),
        ("900MB", Target("bytes", 900e6)),
        ("1.5 GiB", Target("bytes", 1.5 * 2**30)),
        ("700b", Target("bytes", 700)),
        ("4.2bits", Target("bits", 4.2)),
        ("6 bit", Target("bits", 6)),
    ],
)
def test_sizes_are_read(text: str, target: Target) -> None:
    assert parse_size(text) == target


@pytest.mark.parametrize("text", ["", "small", "-1MB", "0.5", "4,2bits", "1e9B", "5TB", "nanx"])
def test_what_is_no_size_is_an_error(text: str) -> None:
    with pytest.raises(BadInputError, match="is no size"):
        parse_size(text)


def test_widths_are_read() -> None:
    assert parse_widths("8, 2,4,16,4") == (2, 4, 8, 16)
    for text in ("", "5", "2,,4", "two", "-2", "²"):
        with pytest.raises(BadInputError, match="number of bits"):
            parse_widths(text)


def info(name: str, shape: tuple[int, ...], dtype: str = "float16") -> TensorInfo:
    return TensorInfo(name=name, dtype=dtype, shapes=(shape,))  # type: ignore[arg-type]


def test_random_inputs_are_such_as_a_pipeline_gives() -> None:
    infos = [
        info("sample", (2, 4, 8, 8)),
        info("timestep", (2,)),
        info("encoder_hidden_states", (2, 16, 1, 77)),
        info("time_ids", (2, 6)),
        info("input_ids", (1, 77), "float32"),
        info("controlnet_cond", (2, 3, 64, 64)),
        info("x", (1, 3, 64, 64)),
    ]
    given = {each.name: each for each in infos}
    made = random_inputs(given, 300, 7)
    assert all(given[name].complaint(array) is None for name, array in made.items())
    assert len(made) == len(infos)
    assert 0 <= made["timestep"][0] < 500 <= made["timestep"][1] <= 999
    assert made["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * 2
    ids = made["input_ids"][0]
    assert (ids[0], ids[-1], ids.min() >= 0, ids.max()) == (298, 299, True, 299)
    assert made["controlnet_cond"].min() >= 0
    assert made["x"].min() < 0
    again, other = random_inputs(given, 300, 7), random_inputs(given, 300, 8)
    assert all(np.array_equal(again[name], made[name]) for name in made)
    assert not np.array_equal(other["sample"], made["sample"])


def test_noise_is_of_the_output_that_differs() -> None:
    one = {"a": np.array([2.0, -4.0], np.float32), "b": np.zeros(2, np.float32)}
    other = {"a": np.array([2.0, -3.0], np.float32), "b": np.zeros(2, np.float32)}
    assert noise([one], [other]) == {"a": 0.5 / 16, "b": 0.0}
    assert noise([one, one], [one, other]) == {"a": 0.25 / 16, "b": 0.0}
    assert noise([one], [{**one, "b": np.array([np.nan, 0], np.float32)}])["b"] == np.inf
    assert noise([one], [{**one, "b": np.ones(2, np.float32)}])["b"] == np.inf
    with pytest.raises(PredictionError, match="NaN"):
        noise([{"a": np.array([np.nan])}], [{"a": np.zeros(1)}])


def test_a_constant_that_does_not_fit_or_is_not_there_cannot_be_replaced(made: Path) -> None:
    runtime = ReferenceRuntime.load(made / "small.mlpackage")
    inputs = random_inputs(runtime.inputs, 300, 0)
    with pytest.raises(PredictionError, match="no constant 'nothing'"):
        runtime.predict(inputs, constants={"nothing": np.zeros(3, np.float16)})
    with pytest.raises(PredictionError, match="cannot take its place"):
        runtime.predict(inputs, constants={"wide_weight_to_fp16": np.zeros((2, 2), np.float16)})

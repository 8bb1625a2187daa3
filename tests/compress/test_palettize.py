"""Packages made smaller: what is compressed, what is left alone, what is refused; and nothing half-written stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.compress.conftest import LAYERS, make_package

from renderkiln.schema.errors import BadInputError, CompressionError, ModelLoadError, RecipeError
from renderkiln.worker.convert.compress.layers import find_layers, read_graph
from renderkiln.worker.convert.compress.palette import Histogram
from renderkiln.worker.convert.compress.palettize import palettize
from renderkiln.worker.convert.compress.planner import psnr_of
from renderkiln.worker.convert.compress.quality import noise, random_inputs
from renderkiln.worker.convert.compress.recipe import Recipe
from renderkiln.worker.runtimes.mlpackage import open_package
from renderkiln.worker.runtimes.reference import ReferenceRuntime
from renderkiln.worker.runtimes.reference.decode import decode_constants


def outputs(package: Path) -> list[dict[str, np.ndarray]]:
    runtime = ReferenceRuntime.load(package)
    return [runtime.predict(random_inputs(runtime.inputs, 300, seed)) for seed in (0, 1)]


def psnr(original: Path, smaller: Path) -> float:
    return psnr_of(max(noise(outputs(original), outputs(smaller)).values()))


def bits_in(package: Path) -> dict[str, int]:
    """The bits of each palettized weight of a package, by the name that the weight had."""
    graph = read_graph(open_package(package))
    return {
        node.outputs[0].name.removesuffix("_palettized"): int(
            graph.constants[node.inputs["lut"][0]].value.size
        ).bit_length()
        - 1
        for node in graph.nodes
        if node.type == "constexpr_lut_to_dense"
    }


@pytest.mark.parametrize(("kind", "widths"), [("small", (1, 2, 4, 6, 8)), ("new", (3, 8)), ("single", (2, 6))])
def test_fewer_bits_make_a_smaller_package_and_a_lower_psnr(
    made: Path, tmp_path: Path, kind: str, widths: tuple[int, ...]
) -> None:
    original = made / f"{kind}.mlpackage"
    results = [palettize(original, tmp_path / f"{nbits}.mlpackage", nbits=nbits) for nbits in widths]
    sizes = [result.bytes_after for result in results]
    psnrs = [psnr(original, result.target) for result in results]
    assert sizes == sorted(sizes)
    assert sizes[-1] < results[0].bytes_before == open_package(original).size
    assert psnrs == sorted(psnrs)
    assert psnrs[-1] > 40
    for nbits, result in zip(widths, results, strict=True):
        assert result.bytes_after == open_package(result.target).size
        assert result.bits_per_weight == nbits
        assert {layer.nbits for layer in result.layers} == {nbits}
        assert set(bits_in(result.target).values()) == {nbits}


def test_the_package_holds_the_palettes_and_leaves_tables_and_small_weights_alone(small: Path, tmp_path: Path) -> None:
    layers = find_layers(read_graph(open_package(small)))
    assert {name: layer.elements for name, layer in layers.items()} == LAYERS
    result = palettize(small, tmp_path / "four.mlpackage", nbits=4)
    assert {layer.name: layer.elements for layer in result.layers} == LAYERS
    before, after = read_graph(open_package(small)), read_graph(open_package(result.target))
    decode_constants(after)
    for name, layer in layers.items():
        expected = Histogram(layer.weight).palette(4).apply(layer.weight)
        assert np.array_equal(after.constants[f"{name}_palettized"].value, expected)
    for name in ("table_weight_to_fp16", "few_weight_to_fp16"):
        assert np.array_equal(after.constants[name].value, before.constants[name].value)


def test_a_recipe_gives_each_layer_its_bits(small: Path, tmp_path: Path) -> None:
    recipe = Recipe(nbits=2, layers={"wide_weight_to_fp16": 8, "across_*": 16})
    result = palettize(small, tmp_path / "mixed.mlpackage", recipe=recipe)
    assert bits_in(result.target) == {"wide_weight_to_fp16": 8, "narrow_weight_to_fp16": 2}
    assert {layer.name: layer.nbits for layer in result.layers}["across_weight_to_fp16"] == 16
    expected = (48 * 96 * 8 + 48 * 96 * 2 + 48 * 48 * 3 * 16) / sum(LAYERS.values())
    assert result.bits_per_weight == pytest.approx(expected)


def test_it_tells_of_its_progress_and_starts_no_process(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fork() -> int:
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", no_fork)
    told: list[tuple[str, int, int]] = []
    palettize(small, tmp_path / "four.mlpackage", nbits=4, progress=lambda *what: told.append(what))
    assert told == [(what, done, 3) for what in ("finding palettes", "writing") for done in (1, 2, 3)]


def refused(small: Path, target: Path, kind: type[Exception], match: str, **how: object) -> None:
    """Compressing fails so, and neither harms its input nor leaves anything."""
    digest = open_package(small).sha256() if target != small else None
    around = sorted(target.parent.iterdir()) if target.parent.exists() else None
    with pytest.raises(kind, match=match):
        palettize(small, target, **({"nbits": 4} | how))  # type: ignore[arg-type]
    if around is not None:
        assert sorted(target.parent.iterdir()) == around
    if digest:
        assert open_package(small).sha256() == digest


def test_a_target_that_exists_is_never_written_over(small: Path, tmp_path: Path) -> None:
    refused(small, small, BadInputError, "never overwritten")
    (tmp_path / "there.mlpackage").mkdir()
    refused(small, tmp_path / "there.mlpackage", BadInputError, "exists already")
    (tmp_path / "dangling.mlpackage").symlink_to(tmp_path / "nowhere")
    refused(small, tmp_path / "dangling.mlpackage", BadInputError, "exists already")
    refused(small, tmp_path / "package", BadInputError, "ends in .mlpackage")


def test_bad_requests_are_refused(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.mlpackage"
    refused(small, target, RecipeError, "bits, not 5", nbits=5)
    refused(small, target, BadInputError, "macOS 15", nbits=3)
    refused(small, target, BadInputError, "bits or a recipe", nbits=None)
    refused(small, target, RecipeError, "no weight", recipe=Recipe(layers={"nothing": 4}))
    refused(small, target, BadInputError, "as it is", nbits=None, recipe=Recipe())


def test_what_is_compressed_already_is_not_compressed_again(small: Path, tmp_path: Path) -> None:
    result = palettize(small, tmp_path / "four.mlpackage", nbits=4)
    refused(result.target, tmp_path / "again.mlpackage", BadInputError, "compressed already")


def test_what_is_no_package_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        palettize(tmp_path / "none.mlpackage", tmp_path / "out.mlpackage", nbits=4)
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(ModelLoadError, match=r"Manifest\.json"):
        palettize(tmp_path / "empty.mlpackage", tmp_path / "out.mlpackage", nbits=4)


def test_another_kind_of_model_is_refused(small: Path, tmp_path: Path) -> None:
    spec_path = open_package(small).spec_path
    spec = open_package(small).read_spec()
    spec.pipeline.models.add()
    spec_path.write_bytes(spec.SerializeToString())
    refused(small, tmp_path / "out.mlpackage", BadInputError, "only ML programs")


@pytest.mark.parametrize("part", [0.9, 0.5, 0.001, 0])
def test_truncated_weights_are_a_typed_error(small: Path, tmp_path: Path, part: float) -> None:
    (weights,) = open_package(small).weight_files
    os.truncate(weights, int(weights.stat().st_size * part))
    refused(small, tmp_path / "out.mlpackage", ModelLoadError, "truncated")


def test_a_truncated_spec_is_a_typed_error(small: Path, tmp_path: Path) -> None:
    spec = open_package(small).spec_path
    os.truncate(spec, spec.stat().st_size // 2)
    refused(small, tmp_path / "out.mlpackage", ModelLoadError, "damaged")


def test_infinite_weights_are_an_error_that_names_the_layer(tmp_path: Path) -> None:
    spoilt = make_package(tmp_path / "spoilt.mlpackage", spoil=True)
    refused(spoilt, tmp_path / "out.mlpackage", ModelLoadError, "wide_weight_to_fp16")


_LIMITED = """
import resource, sys
from pathlib import Path
from renderkiln.schema.errors import CompressionError
from renderkiln.worker.convert.compress.palettize import palettize
import coremltools

for limit in sys.argv[3:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
    try:
        palettize(Path(sys.argv[1]), Path(sys.argv[2]), nbits=8)
    except CompressionError as error:
        print("refused:", error)
"""


def test_where_no_more_can_be_written_nothing_is_left(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "to" / "out.mlpackage"
    # The spec does not fit, then not the weights, then not their end.
    arguments = [sys.executable, "-c", _LIMITED, str(small), str(target), "100", "12000", "40000"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=150)
    assert result.stdout.count("refused:") == 3, result.stdout + result.stderr
    assert list(target.parent.iterdir()) == []


_STOPPED = """
import os, signal, sys
from pathlib import Path
from renderkiln.schema.errors import CompressionError
from renderkiln.worker.convert.compress.palettize import palettize

def stop(what, done, of):
    if (what, done) == ("writing", 1):
        if sys.argv[3] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        print("here", flush=True)
        sys.stdin.readline()

try:
    palettize(Path(sys.argv[1]), Path(sys.argv[2]), nbits=4, progress=stop)
except CompressionError as error:
    print(error)
"""


def test_what_a_killed_process_leaves_goes_at_the_next_start(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "to" / "out.mlpackage"
    arguments = [sys.executable, "-c", _STOPPED, str(small), str(target), "die"]
    assert subprocess.run(arguments, timeout=150).returncode == -signal.SIGKILL
    (left,) = target.parent.iterdir()
    assert left.name.startswith(".out.mlpackage.")
    (target.parent / ".another.mlpackage.abcdefgh.tmp").mkdir()
    palettize(small, target, nbits=4)
    # Only what was left of this target is known to be in nobody's way.
    assert {each.name for each in target.parent.iterdir()} == {target.name, ".another.mlpackage.abcdefgh.tmp"}


def test_what_a_living_process_is_at_work_in_stays(small: Path, tmp_path: Path) -> None:
    target = tmp_path / "to" / "out.mlpackage"
    arguments = [sys.executable, "-c", _STOPPED, str(small), str(target), "wait"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        (living,) = target.parent.iterdir()
        palettize(small, target, nbits=8)
        assert set(target.parent.iterdir()) == {living, target}
        said, _ = process.communicate("go on\n", timeout=150)
    assert "cannot be put in place" in said
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("moment", ["finding palettes", "writing"])
def test_an_interruption_leaves_nothing(small: Path, tmp_path: Path, moment: str) -> None:
    def interrupt(what: str, _done: int, _of: int) -> None:
        if what == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        palettize(small, tmp_path / "to" / "out.mlpackage", nbits=4, progress=interrupt)
    assert list((tmp_path / "to").iterdir()) == []


def test_temporary_files_lie_beside_the_target_and_go(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "tmp"
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    palettize(small, tmp_path / "to" / "four.mlpackage", nbits=4)
    assert list(elsewhere.iterdir()) == []
    assert [each.name for each in (tmp_path / "to").iterdir()] == ["four.mlpackage"]


def test_a_folder_that_cannot_be_written_is_a_typed_error(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressionError, match="cannot write"):
        palettize(small, tmp_path / "file" / "out.mlpackage", nbits=4)

"""Measures how much each layer suffers from fewer bits: the noise in the model's outputs when it alone is compressed.

The model is loaded once, into the reference runtime; each layer's compressed weight takes the place of its own for one
run. Nothing is written or converted. What was measured can be kept in a file, so that an analysis that was
interrupted goes on, and another target needs no new measurements.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from renderkiln.schema.errors import BadInputError, CompressionError, ModelLoadError

from ...runtimes.mlpackage import open_package
from ...runtimes.reference import ReferenceRuntime
from .layers import Layer, find_layers, read_graph
from .palette import Histogram
from .quality import noise, random_inputs, vocabulary

#: Told how many of how many measurements are done.
Progress = Callable[[str, int, int], None]
MEASURING = "measuring"
_LIMIT = 64 << 20


class LayerMeasurements(BaseModel):
    """What compressing one layer alone does to the model's outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    shape: tuple[int, ...]
    #: Bytes of an element of the layer as it is.
    itemsize: Literal[2, 4]
    #: Bits to the power of the noise over the peak squared, in the output that suffers most.
    errors: dict[int, float] = Field(default_factory=dict)

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))


class Measurements(BaseModel):
    """What was measured of a package."""

    # A layer may well make infinite noise, for which JSON has no number.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    version: Literal[1] = 1
    #: SHA-256 of the package, as `mlpackage.Package.sha256` takes it.
    sha256: str
    package_bytes: int
    samples: int
    seed: int
    layers: tuple[LayerMeasurements, ...]


def measure(
    package: Path,
    widths: Sequence[int],
    *,
    samples: int = 1,
    seed: int = 0,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> Measurements:
    """Measures each layer of a package at each width.

    Args:
        package: a `.mlpackage` that holds one ML program.
        widths: bits to measure at.
        samples: how many sets of random inputs each measurement is averaged over.
        seed: of the inputs.
        keep: a file that measurements are read from, if it is there, and written to as they come.
        progress: told how many measurements of how many are done.

    Raises:
        BadInputError: nothing can be compressed, or the file holds other measurements than these.
        ModelLoadError: the package cannot be read.
        UnsupportedOpError: it holds an operation that the reference runtime does not know.
        CompressionError: `keep` cannot be written.
    """
    opened = open_package(package)
    graph = read_graph(opened)
    layers = find_layers(graph)
    if not layers:
        raise BadInputError(f"{package} has no weights to compress: they are compressed already, or very small")
    start = Measurements(
        sha256=opened.sha256(),
        package_bytes=opened.size,
        samples=samples,
        seed=seed,
        layers=tuple(
            LayerMeasurements(name=each.name, shape=each.shape, itemsize=each.itemsize) for each in layers.values()
        ),
    )
    kept = _kept(keep, start)
    errors = {each.name: dict(each.errors) for each in (kept or start).layers}
    todo = [(layer, width) for layer in layers.values() for width in widths if width not in errors[layer.name]]
    if not todo:
        return _with(start, errors)
    runtime = ReferenceRuntime.load(package)
    inputs = [random_inputs(runtime.inputs, vocabulary(graph), seed + number) for number in range(samples)]
    references = [runtime.predict(each) for each in inputs]
    tell = progress or (lambda _what, _done, _of: None)
    last = todo[0][0]
    try:
        for done, (layer, width, weight) in enumerate(_compressed(todo), start=1):
            if keep is not None and layer is not last:
                _save(keep, _with(start, errors))  # for the day that the power goes
            last = layer
            outputs = [runtime.predict(each, constants={layer.name: weight}) for each in inputs]
            errors[layer.name][width] = max(noise(references, outputs).values())
            tell(MEASURING, done, len(todo))
    finally:
        if keep is not None:
            _save(keep, _with(start, errors))
    return _with(start, errors)


def _compressed(todo: Sequence[tuple[Layer, int]]) -> Iterator[tuple[Layer, int, NDArray[np.floating]]]:
    """Each layer's weight at each width; the next ones are clustered while the model runs on the last one."""
    counted: tuple[Layer, Histogram] | None = None

    def compress(layer: Layer, width: int) -> tuple[Layer, int, NDArray[np.floating]]:
        nonlocal counted
        if counted is None or counted[0] is not layer:
            try:
                counted = (layer, Histogram(layer.weight))
            except ModelLoadError as error:
                raise ModelLoadError(f"the weight {layer.name}: {error}") from error
        return layer, width, counted[1].palette(width).apply(layer.weight)

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = iter(todo)
        ahead = [pool.submit(compress, *each) for each in islice(waiting, 2)]
        try:
            while ahead:
                yield ahead.pop(0).result()
                ahead.extend(pool.submit(compress, *each) for each in islice(waiting, 1))
        finally:
            pool.shutdown(cancel_futures=True)


def _with(start: Measurements, errors: dict[str, dict[int, float]]) -> Measurements:
    layers = tuple(each.model_copy(update={"errors": dict(sorted(errors[each.name].items()))}) for each in start.layers)
    return start.model_copy(update={"layers": layers})


def _kept(path: Path | None, expected: Measurements) -> Measurements | None:
    """What an earlier analysis left, if it was of the same package and inputs."""
    if path is None or not path.exists():
        return None
    try:
        if path.stat().st_size > _LIMIT:
            raise BadInputError(f"{path} is too long for measurements of layers")
        found = Measurements.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BadInputError(f"{path} holds no measurements of layers: {error.errors()[0]['msg']}") from error
    for field, what in (
        ("sha256", "another package"),
        ("samples", "another number of samples"),
        ("seed", "another seed"),
    ):
        if getattr(found, field) != getattr(expected, field):
            raise BadInputError(f"{path} holds measurements of {what}; choose another file, or remove it")
    if [each.name for each in found.layers] != [each.name for each in expected.layers]:
        raise BadInputError(f"{path} holds measurements of other layers; choose another file, or remove it")
    return found


def _save(path: Path, measurements: Measurements) -> None:
    text = measurements.model_dump_json(indent=1) + "\n"
    folder = path.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CompressionError(f"{path} cannot be written: {error.strerror}") from error

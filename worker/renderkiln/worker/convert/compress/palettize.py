"""Palettizes one `.mlpackage`: reads it, finds a palette for each weight, writes the smaller package beside it.

Works wherever coremltools does, because nothing is loaded into Core ML. The target appears only once it is complete.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from renderkiln.schema.errors import BadInputError, CompressionError, ModelLoadError

from ...runtimes.mlpackage import Package, open_package
from .coremltools_quietly import checking_itself_less, quietly, temporary_files_in
from .layers import Layer, find_layers, read_graph
from .palette import Histogram, Palette
from .recipe import UNTOUCHED, Recipe, uniform
from .writing import new_folder, reason

#: Specification version of packages made for macOS 15 and iOS 18.
_MACOS_15 = 9
#: Told of what is being done, and how many of how many layers are done.
Progress = Callable[[str, int, int], None]
CLUSTERING, WRITING = "finding palettes", "writing"


class LayerResult(BaseModel):
    """What became of one weight."""

    model_config = ConfigDict(frozen=True)

    name: str
    shape: tuple[int, ...]
    #: 16 if it was left alone.
    nbits: int

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))


class CompressionResult(BaseModel):
    """What became of a package."""

    model_config = ConfigDict(frozen=True)

    source: Path
    target: Path
    bytes_before: int
    bytes_after: int
    seconds: float
    #: Every weight that could be compressed, in the program's order.
    layers: tuple[LayerResult, ...]

    @property
    def bits_per_weight(self) -> float:
        """The average over the elements of `layers`: palettes and what is never compressed do not enter."""
        return average_bits({each.name: (each.elements, each.nbits) for each in self.layers})


def average_bits(layers: Mapping[str, tuple[int, int]]) -> float:
    """The mean of bits over elements, given (elements, bits) for each layer."""
    elements = sum(count for count, _ in layers.values())
    return sum(count * bits for count, bits in layers.values()) / elements if elements else float(UNTOUCHED)


def palettize(
    package: Path,
    target: Path,
    *,
    nbits: int | None = None,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> CompressionResult:
    """Writes a smaller copy of a package.

    Args:
        package: a `.mlpackage` that holds one ML program.
        target: the `.mlpackage` to write; must not exist.
        nbits: the bits of every layer that the recipe does not name: 1, 2, 3, 4, 6 or 8.
        recipe: bits for each layer. At least one of `nbits` and `recipe` must be given.
        progress: called with what is being done, and how many of how many layers are done.
        threads: how many layers are clustered at once; all cores unless told. No process is started.

    Raises:
        BadInputError: the target exists, or the package cannot be compressed, or is compressed already.
        RecipeError: the recipe names a weight that is not there, or a width that the package's format lacks.
        ModelLoadError: the package cannot be read.
        CompressionError: the result cannot be written. Nothing is left at the target.
    """
    started = time.monotonic()
    tell = progress or (lambda _what, _done, _of: None)
    if nbits is None and recipe is None:
        raise BadInputError("give a number of bits or a recipe")
    default = None if nbits is None else uniform(nbits).nbits
    _check_target(package, target)
    opened = open_package(package)
    with quietly(), checking_itself_less(), new_folder(beside=target) as folder, temporary_files_in(folder):
        layers = find_layers(read_graph(opened))
        bits = (recipe or Recipe()).assign(layers, nbits=default)
        _check(opened, layers, bits)
        palettes = _find_palettes(layers, bits, tell, threads)
        written = _write(opened, folder / target.name, palettes, tell)
        size = written.size
        try:
            written.path.replace(target)
        except OSError as error:
            raise CompressionError(f"{target} cannot be put in place: {error.strerror}") from error
    return CompressionResult(
        source=package,
        target=target,
        bytes_before=opened.size,
        bytes_after=size,
        seconds=time.monotonic() - started,
        layers=tuple(LayerResult(name=name, shape=layer.shape, nbits=bits[name]) for name, layer in layers.items()),
    )


def _check_target(package: Path, target: Path) -> None:
    if target.suffix != ".mlpackage":
        raise BadInputError(f"{target}: a package's name ends in .mlpackage")
    if target.exists() or target.is_symlink():
        same = package.exists() and target.exists() and target.samefile(package)
        what = (
            "is the package itself, and is never overwritten"
            if same
            else "exists already; remove it, or choose another"
        )
        raise BadInputError(f"{target} {what}")


def _check(package: Package, layers: Mapping[str, Layer], bits: Mapping[str, int]) -> None:
    if not layers:
        raise BadInputError(
            f"{package.path} has no weights to compress: they are compressed already, as `convert --nbits` does, "
            "or very small"
        )
    if all(width == UNTOUCHED for width in bits.values()):
        raise BadInputError(f"the recipe leaves every weight of {package.path} as it is")
    if 3 in bits.values() and package.read_spec().specificationVersion < _MACOS_15:
        raise BadInputError(f"{package.path} was converted for a system before macOS 15, which has no 3-bit palettes")


def _find_palettes(
    layers: Mapping[str, Layer], bits: Mapping[str, int], tell: Progress, threads: int | None
) -> dict[str, Palette]:
    # Threads do, because the clustering is C code that lets go of Python's lock; a fork would crash on macOS.
    found: dict[str, Palette] = {}
    chosen = [layer for name, layer in layers.items() if bits[name] != UNTOUCHED]
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        waiting = {layer.name: pool.submit(_find_palette, layer, bits[layer.name]) for layer in chosen}
        try:
            for name, future in waiting.items():
                found[name] = future.result()
                tell(CLUSTERING, len(found), len(chosen))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def _find_palette(layer: Layer, nbits: int) -> Palette:
    try:
        return Histogram(layer.weight).palette(nbits)
    except ModelLoadError as error:
        raise ModelLoadError(f"the weight {layer.name}: {error}") from error


def _write(package: Package, path: Path, palettes: Mapping[str, Palette], tell: Progress) -> Package:
    """Has coremltools write the package with these palettes, and reads it back."""
    import coremltools as ct
    from coremltools.optimize.coreml import OpPalettizerConfig, OptimizationConfig, palettize_weights

    done = 0

    def look_up(palette: Palette, weight: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        nonlocal done
        done += 1
        tell(WRITING, done, len(palettes))
        return palette.values, palette.indices(weight)

    configs = {
        name: OpPalettizerConfig(mode="custom", lut_function=partial(look_up, palette), weight_threshold=0)
        for name, palette in palettes.items()
    }
    try:
        model = ct.models.MLModel(str(package.path), skip_model_load=True)
        palettize_weights(model, OptimizationConfig(op_name_configs=configs)).save(str(path))
    except OSError as error:
        raise CompressionError(f"{path.name} cannot be written: {reason(error)}") from error
    except (RuntimeError, ValueError, KeyError, AttributeError, AssertionError, TypeError) as error:
        if shutil.disk_usage(path.parent).free < package.size:
            # What writes the weights says of a full disk no more than that it could not write.
            raise CompressionError(f"{path.name} cannot be written: the disk is full") from error
        raise CompressionError(f"coremltools could not compress {package.path}: {error}") from error
    return _read_back(path, len(palettes))


def _read_back(path: Path, expected: int) -> Package:
    """Opens what was written: its C++ writer does not always notice a full disk."""
    try:
        written = open_package(path)
        graph = read_graph(written)
    except ModelLoadError as error:
        raise CompressionError(f"what was written cannot be read back; is the disk full? ({error})") from error
    found = sum(node.type == "constexpr_lut_to_dense" for node in graph.nodes)
    if found != expected:
        raise CompressionError(f"{path.name} holds {found} palettes instead of {expected}")
    return written

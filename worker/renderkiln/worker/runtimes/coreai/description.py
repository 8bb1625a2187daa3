"""What an asset takes and gives, function by function, read without loading it.

Several sizes of a model are several functions of one asset over the same weights: `main`, which every asset has, and
`main_768x512` and the like beside it. For who calls it they are one model with inputs of several shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from renderkiln.schema.errors import ModelLoadError, did_you_mean

from ..base import DType, Shape, TensorInfo
from .asset import open_asset

#: The function for a model's default size, and the only one that Apple's Swift pipeline calls.
MAIN = "main"
_TYPE = re.compile(r"NDArray \((\w+), ([\d ×?]+)\)")
_BITS = re.compile(r"(?:BFloat|Float|U?Int)(\d+)")
#: Whole numbers of these sizes are shapes and indices, not weights.
_NO_WEIGHTS = re.compile(r"U?Int(32|64)|Bool")


@dataclass(frozen=True)
class Function:
    """One function of an asset; each tensor has one shape."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def describe_functions(path: Path) -> dict[str, Function]:
    """The functions of an asset, as its program declares them.

    To be called before an asset is loaded: a program that is cut off ends the process that loads it.

    Raises:
        ModelLoadError: it is no asset, its program is damaged, or it takes or gives what no model here does.
    """
    summary = _summary(path, statistics=False)
    return {
        name: Function(
            _tensors(path, summary.function_inputs(name), "takes"),
            _tensors(path, summary.function_outputs(name), "gives"),
        )
        for name in summary.function_names
    }


def bits_per_weight(path: Path) -> float | None:
    """Mean bits of what an asset stores of its weights, scales included. Raises ModelLoadError."""
    return mean_bits(_summary(path, statistics=True).storage_types)


def mean_bits(stored: Iterable[tuple[str, int]]) -> float | None:
    """Mean bits of the numbers that may be weights; None where there are none.

    Args:
        stored: as Core AI's summary says it, such as `("Int4", 2165376)`.
    """
    found = [
        (int(match[1]), count)
        for name, count in stored
        if (match := _BITS.match(name)) is not None and not _NO_WEIGHTS.fullmatch(name)
    ]
    total = sum(count for _, count in found)
    return round(sum(bits * count for bits, count in found) / total, 2) if total else None


def merge(functions: Sequence[Function]) -> Function:
    """Functions of one asset as one whose tensors have several shapes, the first function's first.

    Raises:
        ModelLoadError: they do not take and give the same by name and dtype.
    """
    return Function(
        _merged([function.inputs for function in functions]), _merged([function.outputs for function in functions])
    )


def choose(path: Path, there: Mapping[str, Function] | Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The functions to use of those that are there. Raises ModelLoadError if one is missing."""
    for name in wanted or (MAIN,):
        if name not in there:
            raise ModelLoadError(
                f"{path} has no function {name}.{did_you_mean(name, there)} It has {', '.join(there) or 'none'}"
            )
    return tuple(wanted or (MAIN,))


def sizes_of(names: Iterable[str]) -> tuple[str, ...]:
    """Of an asset's functions those for the sizes of one model, `main` first."""
    return (MAIN, *sorted(name for name in names if name.startswith(f"{MAIN}_")))


def tensor(what: str, name: str, dtype: str, shape: Sequence[object]) -> TensorInfo:
    """A tensor as Core AI describes it, in our words.

    Args:
        what: the beginning of a message on it: `m.aimodel takes x`.
        dtype: as Core AI calls it, in any case.
        shape: sizes; what is no size larger than zero is one that is left open.

    Raises:
        ModelLoadError: no model here has such a tensor.
    """
    if dtype.casefold() not in get_args(DType):
        raise ModelLoadError(f"{what} as {dtype}; known are {', '.join(get_args(DType))}")
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise ModelLoadError(f"{what} of shape ({', '.join(map(str, shape))}): its shape is open, and must be fixed")
    return TensorInfo(name=name, dtype=cast("DType", dtype.casefold()), shapes=(cast("Shape", tuple(shape)),))


def _summary(path: Path, *, statistics: bool) -> Any:
    open_asset(path)
    from .library import runtime

    runtime()
    from coreai.authoring import AIModelAsset

    try:
        summary = AIModelAsset.load(path).summary(include_statistics=statistics)
    except RuntimeError as error:
        raise ModelLoadError(f"{path} cannot be read by Core AI: {error}") from error
    if summary is None or not summary.function_names:
        raise ModelLoadError(
            f"{path} is damaged or not complete: its program cannot be read. Get or convert the model again"
        )
    return summary


def _tensors(path: Path, described: Iterable[tuple[str, str]], verb: str) -> tuple[TensorInfo, ...]:
    return tuple(_tensor(path, name, text, verb) for name, text in described)


def _tensor(path: Path, name: str, text: str, verb: str) -> TensorInfo:
    match = _TYPE.fullmatch(text.strip())
    if match is None:
        raise ModelLoadError(f"{path} {verb} {name} as {text}, which is not known here; known are arrays of numbers")
    sizes = [size.strip() for size in match[2].split("×")]
    shape = [int(size) if size.isdigit() else size for size in sizes]
    return tensor(f"{path} {verb} {name}", name, match[1], shape)


def _merged(lists: Sequence[tuple[TensorInfo, ...]]) -> tuple[TensorInfo, ...]:
    first = {info.name: info for info in lists[0]}
    for other in lists[1:]:
        if {info.name: info.dtype for info in other} != {name: info.dtype for name, info in first.items()}:
            raise ModelLoadError(
                f"the functions of one asset differ in more than shapes: {', '.join(sorted(first))} "
                f"and {', '.join(sorted(info.name for info in other))}"
            )
    merged = []
    for name, info in first.items():
        shapes = [shape for each in lists for other in each if other.name == name for shape in other.shapes]
        merged.append(info.model_copy(update={"shapes": tuple(dict.fromkeys(shapes))}))
    return tuple(merged)

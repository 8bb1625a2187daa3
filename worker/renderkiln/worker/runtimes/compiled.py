"""Opens a `.mlmodelc` folder, a model that is compiled already: its files, size and digest, what it takes and gives.

Xcode's compiler writes a `metadata.json` that names inputs and outputs; other ways to compile do not. As with packages,
everything here treats the folder as a stranger's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from renderkiln.home.json_files import read_small
from renderkiln.schema.errors import ModelLoadError

from .base import TensorInfo
from .model_files import ModelFiles, files_inside

SUFFIX = ".mlmodelc"
#: Every compiled model has one of these: the data that Core ML opens first.
_ENTRIES = ("coremldata.bin", "model.mil")
_METADATA = "metadata.json"
#: Some hundred kilobytes are the most that was seen.
_METADATA_LIMIT = 8 << 20
_DTYPES = {"Float16": "float16", "Float32": "float32", "Int32": "int32"}
_PALETTIZED = re.compile(r"Palettized \((\d+) bits\)")
_FLOAT = re.compile(r"Float(16|32)")


@dataclass(frozen=True)
class Compiled(ModelFiles):
    """One `.mlmodelc` folder."""


@dataclass(frozen=True)
class Description:
    """What `metadata.json` says of a compiled model."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    #: Bits per weight; None where it does not say.
    bits: float | None


def open_compiled(path: Path) -> Compiled:
    """Finds a compiled model's files.

    Raises:
        ModelLoadError: it is no folder, no compiled model, or a link in it leads outside of it.
    """
    files = files_inside(path, "a compiled Core ML model")
    if not any(PurePosixPath(entry) in files for entry in _ENTRIES):
        raise ModelLoadError(f"{path} is not a compiled Core ML model: it has none of {', '.join(_ENTRIES)}")
    return Compiled(path=path, files=files)


def describe_compiled(path: Path) -> Description:
    """What a compiled model takes and gives, by its `metadata.json`.

    Raises:
        ModelLoadError: it has none, or one that does not say.
    """
    file = path / _METADATA
    try:
        data = read_small(file, _METADATA_LIMIT, "a description of a model")
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path} does not say what it takes and gives: it has no {_METADATA}. Take the model's packages instead"
        ) from None
    try:
        (model,) = data
        inputs = tuple(_tensor(each) for each in model["inputSchema"])
        outputs = tuple(_tensor(each) for each in model["outputSchema"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # a ValidationError is a ValueError
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise ModelLoadError(f"{file} does not describe one model's inputs and outputs: {what}") from error
    return Description(inputs=inputs, outputs=outputs, bits=_bits(str(model.get("storagePrecision", ""))))


def _tensor(schema: Mapping[str, Any]) -> TensorInfo:
    dtype = _DTYPES.get(str(schema.get("dataType")))
    if schema["type"] != "MultiArray" or dtype is None:
        raise ValueError(f"{schema['name']} is {schema.get('formattedType', schema['type'])}, not an array of numbers")
    shapes = [_shape(schema.get("shape", "[]"))]
    if schema.get("hasShapeFlexibility", "0") != "0":
        # Sizes that are listed are kept; what a range allows, nobody can list.
        shapes += [_shape(json.dumps(each)) for each in json.loads(schema["enumeratedShapes"])]
    return TensorInfo.model_validate(
        {"name": schema["name"], "dtype": dtype, "shapes": tuple(dict.fromkeys(shape for shape in shapes if shape))}
    )


def _shape(text: str) -> tuple[int, ...]:
    """`[2, 4, 64, 64]`; empty for an output whose shape follows from the inputs'."""
    shape = tuple(json.loads(text))
    if not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"{text} is no shape")
    return shape


def _bits(precision: str) -> float | None:
    """`Mixed (Float16, Palettized (6 bits))` is 6, `Float16` is 16."""
    found = _PALETTIZED.findall(precision) or _FLOAT.findall(precision)
    return float(min(map(int, found))) if found and 0 < min(map(int, found)) <= 32 else None

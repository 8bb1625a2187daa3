"""What a spec's description says of a model's inputs and outputs: names, element types, shapes, ranges of shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from renderkiln.schema.errors import ModelLoadError, UnsupportedOpError

from ..base import Array, DType, Shape, TensorInfo
from .weights import TensorType

#: `ArrayFeatureType.ArrayDataType`, and the same types as an ML program calls them.
_TYPES: dict[int, DType] = {65552: "float16", 65568: "float32", 131104: "int32"}
PROGRAM_TYPES: dict[DType, str] = {"float16": "fp16", "float32": "fp32", "int32": "int32"}


@dataclass(frozen=True)
class Feature:
    """One input or output."""

    info: TensorInfo
    #: For each axis the smallest and the largest size (None: any), where the shape may lie in a range.
    ranges: tuple[tuple[int, int | None], ...] = ()

    def complaint(self, array: Array) -> str | None:
        """What is wrong with an array that is meant for this feature, or None."""
        wrong = self.info.complaint(array)
        if wrong is not None or not self.ranges:
            return wrong
        fits = array.ndim == len(self.ranges) and all(
            low <= size and (high is None or size <= high)
            for size, (low, high) in zip(array.shape, self.ranges, strict=True)
        )
        if fits:
            return None
        known = ", ".join(
            str(low) if low == high else f"{low} … {'any' if high is None else high}" for low, high in self.ranges
        )
        return f"{self.info.name} must be of shape ({known}), and is {tuple(array.shape)}"


def features(described: Iterable[Any], what: str) -> dict[str, Feature]:
    """The features of a `FeatureDescription` list, by name.

    Raises:
        UnsupportedOpError: one is an image, a sequence, optional, or of an element type that is not known here.
    """
    found: dict[str, Feature] = {}
    for each in described:
        kind = each.type.WhichOneof("Type")
        if kind != "multiArrayType":
            raise UnsupportedOpError(f"the {what} {each.name} is of kind {kind}; only arrays are known here")
        if each.type.isOptional:
            raise UnsupportedOpError(f"the {what} {each.name} is optional; that is not known here")
        array = each.type.multiArrayType
        if array.dataType not in _TYPES:
            raise UnsupportedOpError(f"the {what} {each.name} has element type {array.dataType}, not known here")
        found[each.name] = _feature(each.name, _TYPES[array.dataType], array)
    return found


def _feature(name: str, dtype: DType, array: Any) -> Feature:
    default: Shape = tuple(array.shape)
    flexibility = array.WhichOneof("ShapeFlexibility")
    if flexibility == "enumeratedShapes":
        shapes = dict.fromkeys([default] if default else [])
        shapes.update(dict.fromkeys(tuple(shape.shape) for shape in array.enumeratedShapes.shapes))
        return Feature(TensorInfo(name=name, dtype=dtype, shapes=tuple(shapes)))
    if flexibility == "shapeRange":
        ranges = tuple(
            (int(each.lowerBound), None if each.upperBound < 0 else int(each.upperBound))
            for each in array.shapeRange.sizeRanges
        )
        return Feature(TensorInfo(name=name, dtype=dtype), ranges)
    return Feature(TensorInfo(name=name, dtype=dtype, shapes=(default,) if default else ()))


def compare(feature: Feature, type_: TensorType, what: str) -> None:
    """Sees that description and program declare the same.

    Raises:
        ModelLoadError: they do not.
    """
    info = feature.info
    fits = PROGRAM_TYPES[info.dtype] == type_.dtype
    if type_.shape is not None:
        for shape in info.shapes:
            fits = fits and len(shape) == len(type_.shape)
            fits = fits and all(a is None or a == b for a, b in zip(type_.shape, shape, strict=False))
        fits = fits and (not feature.ranges or len(feature.ranges) == len(type_.shape))
    if not fits:
        shapes = " or ".join(str(shape) for shape in info.shapes) or "any shape"
        raise ModelLoadError(f"the {what} {info.name} is described as {info.dtype} {shapes} and declared as {type_}")

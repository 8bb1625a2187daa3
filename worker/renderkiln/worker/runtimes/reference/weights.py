"""Reads weight files through memory maps, and constants out of a spec.

A weight file (Core ML's blob storage, version 2) is a header of 64 bytes, then blobs: a record of 64 bytes, beginning
with a sentinel, that gives the element type, the number of bytes and where they lie (a multiple of 64). A spec names a
blob by the offset of its record. Arrays given from here are views of the map wherever the type allows it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from renderkiln.schema.errors import ModelLoadError, UnsupportedOpError

Array = NDArray[Any]

_HEADER = struct.Struct("<II")  # number of blobs, version
_RECORD = struct.Struct("<IIQQQ")  # sentinel, type, bytes, offset of the data, padding in bits
_RECORD_SIZE = 64
_SENTINEL = 0xDEADBEEF
_VERSION = 2

#: The types of a spec's tensors: name, bits of an element, and the numpy type that carries it here.
TYPES: dict[int, tuple[str, int, str]] = {
    1: ("bool", 8, "bool"),
    10: ("fp16", 16, "float16"),
    11: ("fp32", 32, "float32"),
    21: ("int8", 8, "int8"),
    22: ("int16", 16, "int16"),
    23: ("int32", 32, "int32"),
    24: ("int64", 64, "int64"),
    25: ("int4", 4, "int8"),
    31: ("uint8", 8, "uint8"),
    32: ("uint16", 16, "uint16"),
    33: ("uint32", 32, "uint32"),
    35: ("uint4", 4, "uint8"),
    36: ("uint2", 2, "uint8"),
    37: ("uint1", 1, "uint8"),
    38: ("uint6", 6, "uint8"),
    39: ("uint3", 3, "uint8"),
}
BITS = {name: bits for name, bits, _ in TYPES.values()}
NUMPY = {name: np.dtype(carrier) for name, _, carrier in TYPES.values()}

#: The types of a blob's record, by the names above.
_BLOB_TYPES = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}


def unpack(packed: Array, bits: int, count: int, signed: bool = False) -> Array:
    """Elements of 1 to 7 bits out of bytes, lowest bits first; an element may lie across two bytes.

    Args:
        packed: uint8 of shape (n,), n = ceil(count * bits / 8).
        bits: bits of an element.
        count: how many elements.
        signed: whether they are in two's complement.

    Returns:
        uint8, or int8 if signed, of shape (count,).
    """
    values: Array
    if 8 % bits == 0:
        per_byte = 8 // bits
        shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
        values = ((packed[:, None] >> shifts) & np.uint8(2**bits - 1)).reshape(-1)[:count]
    else:
        single = np.unpackbits(packed, count=count * bits, bitorder="little").reshape(count, bits)
        values = np.packbits(single, axis=1, bitorder="little").reshape(-1)
    if signed:
        # Move the sign to the top bit and back: the shift of a signed number keeps it.
        room = 8 - bits
        values = (values << np.uint8(room)).view(np.int8) >> np.int8(room)
    return values


class WeightFile:
    """One weight file, mapped. Reading a blob checks that it lies within the file and is of the type asked for."""

    def __init__(self, path: Path) -> None:
        """Maps the file.

        Raises:
            ModelLoadError: it cannot be read, or is no weight file.
        """
        self.path = path
        try:
            self.size = path.stat().st_size
            if self.size < _RECORD_SIZE:
                raise ModelLoadError(f"{path} is {self.size} bytes long: it is truncated, or is no weight file")
            with path.open("rb") as file:
                # A private map: torch wants memory that could be written, and nothing must reach the file.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise ModelLoadError(f"{path} cannot be read: {error}") from error
        _, version = _HEADER.unpack_from(self._map)
        if version != _VERSION:
            raise ModelLoadError(f"{path} is no weight file of version {_VERSION} (its header says {version})")

    def record(self, offset: int, name: str) -> tuple[str, int, int]:
        """A blob's type, first byte and number of bytes.

        Args:
            offset: of the record in the file.
            name: of the constant, for the message.

        Raises:
            ModelLoadError: the record or its data do not lie within the file, or there is no record at this place.
        """
        if offset + _RECORD_SIZE > self.size:
            raise ModelLoadError(f"{self.path} is truncated: {name} begins at byte {offset} of {self.size}")
        sentinel, kind, size, start, _ = _RECORD.unpack_from(self._map, offset)
        if sentinel != _SENTINEL:
            raise ModelLoadError(f"{self.path} is damaged: no blob begins at byte {offset}, where {name} should")
        if start + size > self.size:
            raise ModelLoadError(f"{self.path} is truncated: {name} ends at byte {start + size} of {self.size}")
        if kind not in _BLOB_TYPES:
            raise UnsupportedOpError(f"{self.path}: {name} is stored as type {kind}, which is not known here")
        return _BLOB_TYPES[kind], start, size

    def read(self, offset: int, dtype: str, shape: tuple[int, ...], name: str) -> Array:
        """One blob, as a view of the map (types of less than a byte are unpacked into uint8 or int8).

        Raises:
            ModelLoadError: see `record`; or the blob's type or size are not what the spec says.
        """
        stored, start, size = self.record(offset, name)
        count = int(np.prod(shape, dtype=np.int64))
        expected = -(-count * BITS[dtype] // 8)
        if stored != dtype or size != expected:
            raise ModelLoadError(
                f"{self.path}: {name} should be {dtype} {shape}, {expected} bytes, and is {stored}, {size} bytes"
            )
        if BITS[dtype] < 8:
            packed = np.frombuffer(self._map, np.uint8, size, start)
            return unpack(packed, BITS[dtype], count, dtype == "int4").reshape(shape)
        return np.frombuffer(self._map, NUMPY[dtype], count, start).reshape(shape)

    def forget_pages(self) -> None:
        """Tells the system that what was read is not needed again soon, so that it does not count as ours."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class TensorType:
    """A value's declared element type and shape; None stands for a size that is known when the model runs."""

    dtype: str
    #: None: even the rank is not declared.
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "?" if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} ({sizes})"

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape of a constant, every size of which is declared."""
        shape = self.shape
        if shape is None:
            raise ModelLoadError("a constant's shape is not declared")
        sizes = tuple(size for size in shape if size is not None)
        if len(sizes) != len(shape):
            raise ModelLoadError("a constant's shape is not declared")
        return sizes


class Constant:
    """A constant: from a blob, from the spec itself, or decoded from others. Read when first asked for."""

    def __init__(self, type_: TensorType, read: Callable[[], Any], file: WeightFile | None = None) -> None:
        self.type = type_
        #: The weight file that `value` is a view of, if it is one.
        self.file = file
        self._read = read

    @cached_property
    def value(self) -> Any:
        """A numpy array of the declared shape, or a str, or a list of str."""
        return self._read()

    def forget(self) -> None:
        """Drops the value; it is read again if asked for."""
        self.__dict__.pop("value", None)


_FIELDS = {"floats": "float32", "ints": "int32", "bools": "bool", "longInts": "int64", "doubles": "float64"}


def immediate(tensor: Any, type_: TensorType, name: str) -> Any:
    """A constant that stands in the spec itself (`TensorValue`).

    Raises:
        ModelLoadError: its number of elements is not what its shape says.
        UnsupportedOpError: it is of a type that is not known here.
    """
    field = tensor.WhichOneof("value")
    shape = type_.static_shape
    count = int(np.prod(shape, dtype=np.int64))
    if type_.dtype == "string":
        strings = list(tensor.strings.values)
        if len(strings) != count:
            raise ModelLoadError(f"{name} should hold {count} strings, and holds {len(strings)}")
        return strings[0] if shape == () else strings
    if type_.dtype not in NUMPY:
        raise UnsupportedOpError(f"{name} is of type {type_.dtype}, which is not known here")
    carrier = NUMPY[type_.dtype]
    values: Array
    if field == "bytes":
        raw = np.frombuffer(tensor.bytes.values, np.uint8)
        expected = -(-count * BITS[type_.dtype] // 8)
        if raw.size != expected:
            raise ModelLoadError(f"{name} should be {type_}, {expected} bytes, and is {raw.size} bytes")
        if BITS[type_.dtype] < 8:
            values = unpack(raw, BITS[type_.dtype], count, type_.dtype == "int4")
        else:
            # A copy: the message's own bytes cannot be written, and torch warns of such memory.
            values = raw.view(carrier).copy()
    elif field in _FIELDS:
        values = np.array(getattr(tensor, field).values, dtype=_FIELDS[field]).astype(carrier)
    elif field is None and count == 0:
        values = np.zeros(0, carrier)
    else:
        raise UnsupportedOpError(f"{name}: a value stored as {field!r} is not known here")
    if values.size != count:
        raise ModelLoadError(f"{name} should be {type_}, {count} elements, and has {values.size}")
    return values.reshape(shape)

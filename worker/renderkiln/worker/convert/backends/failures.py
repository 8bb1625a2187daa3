"""A converter's errors as ours: what both formats' libraries have in common when they fail."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from renderkiln.schema.errors import ConversionError, ModelLoadError

#: A disk with fewer bytes free counts as full.
_FULL = 16 << 20


@contextmanager
def errors_of(converter: str, stage: str, folder: Path) -> Iterator[None]:
    """A library's errors as ConversionError, and none of its warnings.

    Args:
        converter: the library's name.
        folder: what it writes into.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except OSError as error:
            raise ConversionError(f"{stage}: cannot be written: {error.strerror or error}") from error
        except (MemoryError, ConversionError):
            raise
        except Exception as error:
            if shutil.disk_usage(folder).free < _FULL:
                # What writes the weights says of a full disk no more than that it could not write.
                raise ConversionError(f"{stage}: the disk is full") from error
            raise ConversionError(f"{stage}: {converter} could not convert it: {error}") from error


@contextmanager
def reading_back(stage: str) -> Iterator[None]:
    """What cannot be read of what was just written, as ConversionError."""
    try:
        yield
    except ModelLoadError as error:
        raise ConversionError(f"{stage}: what was written cannot be read back; is the disk full? ({error})") from error

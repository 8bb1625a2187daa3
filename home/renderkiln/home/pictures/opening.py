"""Opening files that others made: limits first, then Pillow; every way of failing becomes one kind of error.

Pictures come from people, other programs and Redis, and none of them is trusted. A decoder that is handed a
broken file may raise nearly anything; here it all becomes `ImageInputError`.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from renderkiln.schema.errors import ImageInputError

#: Pillow's names of the formats that we write; a JPEG with more pictures behind the first opens as MPO.
WRITTEN_FORMATS = ("PNG", "JPEG", "WEBP")

_quiet_lock = threading.RLock()
#: How files begin that people hand in and that we do not take: (offset, bytes, what to call it).
_OTHERS = (
    (0, b"GIF8", "a GIF"),
    (0, b"II*\x00", "a TIFF"),
    (0, b"MM\x00*", "a TIFF"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftyp", "a HEIC picture or a video"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"<svg", "an SVG"),
    (0, b"<?xml", "an SVG or another XML file"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Pillow's warnings to itself: sizes are checked by us, and no one else reads them.

    Warning filters belong to the whole process; the lock keeps our threads from restoring each other's.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def megabytes(count: int) -> str:
    """A size in bytes as people read it: `200.0 MB` (millions of bytes)."""
    return f"{count / 1e6:.1f} MB"


def read_limited(path: Path, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes; a larger one is refused before it is read.

    Raises:
        ImageInputError: missing, a folder, not a regular file, not readable, or too large.
    """
    name = repr(str(path))
    try:
        # Not to block: opening a named pipe would wait for a writer for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        try:
            info = os.fstat(handle)
            if stat.S_ISDIR(info.st_mode):
                raise ImageInputError(f"{name} is a folder; name the picture in it")
            if not stat.S_ISREG(info.st_mode):
                raise ImageInputError(f"{name} is not a regular file; save the picture to a file first")
            if info.st_size > limit:
                raise ImageInputError(
                    f"{name} has {megabytes(info.st_size)}; a picture may have {megabytes(limit)}. Save it smaller."
                )
            with os.fdopen(handle, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise ImageInputError(f"{name} does not exist; check the path") from None
    except PermissionError:
        raise ImageInputError(f"{name} cannot be read: permission denied; check its owner and mode") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ImageInputError(f"{name} cannot be read: {error}") from None
    if len(data) > limit:
        raise ImageInputError(f"{name} has more than {megabytes(limit)} and is still growing")
    return data


def open_picture(data: bytes, name: str, formats: tuple[str, ...]) -> Image.Image:
    """Reads a picture's header: format, size and texts are known, no pixel is decoded yet.

    `formats` is Pillow's allow-list; no other decoder is tried. `name` is how messages call the file.

    Raises:
        ImageInputError: empty, not a picture, of another format, or broken already in its header.
    """
    from PIL import WebPImagePlugin  # noqa: F401  registers WebP; else Pillow would load all of its plugins

    if not data:
        raise ImageInputError(f"{name} is empty (0 bytes)")
    try:
        with quiet():
            return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        wanted = ", ".join(formats[:-1]) + " or " + formats[-1]
        other = next((what for at, head, what in _OTHERS if data[at : at + len(head)] == head), None)
        said = f"is {other}" if other else "is not a picture, or its beginning is damaged"
        raise ImageInputError(f"{name} {said}; save it as {wanted.replace('WEBP', 'WebP')}") from None
    except Image.DecompressionBombError:
        raise ImageInputError(f"{name} claims to have more pixels than any picture; it is refused") from None
    except Exception as error:  # whatever a decoder makes of a hostile file
        raise ImageInputError(f"{name} is damaged: {error or type(error).__name__}") from None

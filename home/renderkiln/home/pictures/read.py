"""The settings inside a picture file, ours or another program's. The file is not trusted."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, JpegImagePlugin, PngImagePlugin
from pydantic import ValidationError

from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import SCHEMA_VERSION
from renderkiln.schema.spec import RenderSpec, parse_spec

from .encode import EXIF_IFD, JSON_KEY, JSON_MARK, MAKER_NOTE, USER_COMMENT
from .metadata import PictureMetadata, parameters_text, parse_parameters_text
from .opening import WRITTEN_FORMATS, open_picture, quiet, read_limited

#: Bytes of a file that is looked into.
MAX_FILE = 64_000_000
#: Bytes of JSON of ours: the longest prompts in escapes are a quarter of it.
_MAX_JSON = 1_000_000
#: Characters kept of a text that another program left in the file.
_MAX_OTHER = 2_000


@dataclass(frozen=True)
class ShownPicture:
    """What a file says about itself."""

    #: Exact where `metadata` is there; else what could be read from `parameters`; None: nothing usable.
    spec: RenderSpec | None
    #: Only in a file of ours whose settings are as they were written.
    metadata: PictureMetadata | None
    parameters: str | None
    #: Settings that no field of a spec stands for, and texts of other programs, shortened.
    other: dict[str, str] = field(default_factory=dict)
    format: str = "PNG"
    width: int = 0
    height: int = 0
    #: Why settings of ours could not be taken (edited, or of a newer renderkiln); empty: all is well.
    note: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether `spec` is the very one that the picture was rendered from."""
        return self.metadata is not None


def read_metadata(source: bytes | str | Path, name: str | None = None) -> ShownPicture:
    """Looks into a PNG, JPEG or WebP, given as bytes or as the path of a file of at most 64 MB.

    Raises:
        ImageInputError: missing, unreadable, too large, not a picture, or damaged.
    """
    if not isinstance(source, bytes):
        name = name or repr(str(source))
        source = read_limited(Path(source), MAX_FILE)
    picture = open_picture(source, name or "the file", WRITTEN_FORMATS)
    with picture, quiet():
        texts, settings, parameters = _texts(picture)
        width, height = picture.size
        file_format = "JPEG" if picture.format == "MPO" else str(picture.format)
    metadata, note = _metadata(settings)
    other = {key: value[:_MAX_OTHER] for key, value in texts.items()}
    spec = None
    if metadata is not None:
        spec = metadata.spec
        parameters = parameters or parameters_text(spec, (width, height))
    elif parameters is not None:
        parsed = parse_parameters_text(parameters)
        other.update(parsed.other)
        spec = _spec(parsed.fields)
    return ShownPicture(spec, metadata, parameters, other, file_format, width, height, note)


def _spec(fields: Mapping[str, Any]) -> RenderSpec | None:
    try:
        return parse_spec(fields)
    except InvalidSpecError:  # a prompt that is too long for us, say
        return None


def _metadata(settings: str | bytes | None) -> tuple[PictureMetadata | None, str]:
    if settings is None:
        return None, ""
    if len(settings) > _MAX_JSON:
        return None, f"the settings inside are longer than {_MAX_JSON} bytes and were not read"
    try:
        return PictureMetadata.model_validate_json(settings), ""
    except ValidationError as error:
        findings = error.errors(include_url=False, include_input=False)
        if any(finding["loc"] == ("schema_version",) for finding in findings):
            newer = f"the settings inside are not of schema {SCHEMA_VERSION}: a newer renderkiln wrote them"
            return None, f"{newer}; update to read them exactly"
        said = findings[0]["msg"].removeprefix("Value error, ")
        where = ".".join(str(part) for part in findings[0]["loc"])
        return None, f"the settings inside cannot be taken as they are: {where}{': ' if where else ''}{said}"


def _texts(picture: Image.Image) -> tuple[dict[str, str], str | bytes | None, str | None]:
    """Other programs' texts, our JSON, and the `parameters` text. A damaged part counts as not there."""
    if isinstance(picture, PngImagePlugin.PngImageFile):
        # `info` holds the texts before the pixels, where the writers that we know put them.
        found = {str(key): str(value) for key, value in picture.info.items() if isinstance(value, str)}
        settings, parameters = found.pop(JSON_KEY, None), found.pop("parameters", None)
        if parameters is not None or settings is not None:
            return found, settings, parameters
        comment, note = _exif_parts(picture)
        return found, note, comment
    comment, note = _exif_parts(picture)
    return {}, note or _segments(picture), comment


def _exif_parts(picture: Image.Image) -> tuple[str | None, bytes | None]:
    try:
        tags = picture.getexif().get_ifd(EXIF_IFD)
        comment, note = tags.get(USER_COMMENT), tags.get(MAKER_NOTE)
    except Exception:  # Pillow raises what comes where EXIF is broken; the picture is one still
        return None, None
    ours = note.removeprefix(JSON_MARK) if isinstance(note, bytes) and note.startswith(JSON_MARK) else None
    return (_user_comment(comment) if isinstance(comment, bytes) else None), ours


def _user_comment(raw: bytes) -> str | None:
    """EXIF's text: eight bytes name the character set. Which end of UTF-16 comes first has to be found."""
    code, body = raw[:8], raw[8:]
    if code == b"UNICODE\x00":
        if body[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return body.decode("utf-16", "replace")
        # The settings' names are ASCII: their zero bytes come first in big-endian text.
        little = body[1::2].count(0) > body[0::2].count(0)
        return body.decode("utf-16-le" if little else "utf-16-be", "replace")
    plain = body if code in (b"ASCII\x00\x00\x00", bytes(8)) else raw
    return plain.decode("utf-8", "replace").strip("\x00 ") or None


def _segments(picture: Image.Image) -> bytes | None:
    """Our JSON from a JPEG's APP9 segments; None where there is none, or not all of it."""
    if not isinstance(picture, JpegImagePlugin.JpegImageFile):
        return None
    pieces: dict[int, bytes] = {}
    count, head = 0, len(JSON_MARK) + 4
    for marker, body in picture.applist:
        if marker == "APP9" and body.startswith(JSON_MARK) and len(body) >= head:
            number, count = struct.unpack(">HH", body[head - 4 : head])
            pieces[number] = body[head:]
    if not count or set(pieces) != set(range(count)):
        return None
    return b"".join(pieces[number] for number in range(count))

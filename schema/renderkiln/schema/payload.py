"""What RQ carries for us: one function name and one argument, the job's JSON.

The function's name is compared, never imported: whoever can write to Redis can name any function, and gets nothing run.
"""

from __future__ import annotations

import json
import zlib

from . import names
from .errors import InvalidSpecError
from .jobs import Job, parse_job
from .limits import MAX_PAYLOAD


def unpack_payload(packed: bytes) -> bytes:
    """RQ's `data` field, decompressed, but no more of it than `read_payload` looks at.

    What is not compressed is given back as it is, as RQ does it; and so is what is cut off.
    """
    if len(packed) > MAX_PAYLOAD:  # compressed, a payload within the limit is smaller still
        return packed
    try:
        return zlib.decompressobj().decompress(packed, MAX_PAYLOAD + 1)
    except zlib.error:
        return packed


def read_payload(data: bytes) -> Job:
    """The job in RQ's (decompressed) `data`.

    Raises:
        InvalidSpecError: another function, other arguments, too large, or not a valid job.
    """
    if len(data) > MAX_PAYLOAD:
        raise InvalidSpecError(f"a payload of {len(data):,} bytes is over the limit of {MAX_PAYLOAD:,}")
    try:
        call = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidSpecError("the payload is not JSON") from None
    if not isinstance(call, list) or len(call) != 4:
        raise InvalidSpecError("the payload is not a call")
    function, instance, arguments, keywords = call
    if function != names.RENDER_FUNCTION:
        said = repr(function[:80]) if isinstance(function, str) else "that is not a name"
        raise InvalidSpecError(f"function {said} is not {names.RENDER_FUNCTION!r}, the only one run here")
    if instance or keywords or not isinstance(arguments, list) or len(arguments) != 1:
        raise InvalidSpecError("the render function takes one argument")
    if not isinstance(arguments[0], str):
        raise InvalidSpecError("the job is not a JSON text")
    return parse_job(arguments[0])

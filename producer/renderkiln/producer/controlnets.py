"""ControlNets as people write them: `MODEL=IMAGE[:SCALE[:START[:END]]]`, such as `canny=edges.png:0.8`.

A path may hold colons: only numbers at its end are settings. One that itself ends in a colon and a number is written
with all three settings: `canny=scan:1:1:0:1` is the file `scan:1`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from renderkiln.schema.errors import InvalidSpecError

FORM = "MODEL=IMAGE[:SCALE[:START[:END]]]"
_REFERENCE = "sha256:"
_SETTINGS = ("conditioning_scale", "guidance_start", "guidance_end")
_DEFAULTS = (1.0, 0.0, 1.0)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
#: Between several in one text: a semicolon before what looks like the next one's model. A path may hold others.
_BETWEEN = re.compile(r"\s*;\s*(?=[A-Za-z0-9][A-Za-z0-9._/-]*=)")


def parse_controlnet(text: str) -> dict[str, Any]:
    """The fields of one ControlNet, its picture as it was written; the schema checks them.

    Raises:
        InvalidSpecError: no model or no picture is named.
    """
    model, equals, rest = text.strip().partition("=")
    # A reference has a colon of its own.
    head = _REFERENCE if rest.startswith(_REFERENCE) else ""
    image, *numbers = _split(rest.removeprefix(head))
    if not equals or not model.strip() or not image.strip():
        shown = text if len(text) <= 60 else text[:57] + "…"
        raise InvalidSpecError(f"ControlNet {shown!r}: expected {FORM}, such as canny=edges.png:0.8")
    return {"model": model.strip(), "image": head + image, **dict(zip(_SETTINGS, numbers, strict=False))}


def parse_controlnets(text: str) -> list[dict[str, Any]]:
    """Several in one text, with semicolons between them: `canny=edges.png; depth=depth.png:0.5`. Raises like one."""
    return [parse_controlnet(each) for each in _BETWEEN.split(text)]


def controlnet_text(fields: Mapping[str, Any]) -> str:
    """The text that `parse_controlnet` reads as these fields; settings at their defaults are left out."""
    image = str(fields["image"])
    numbers = [float(fields.get(name, default)) for name, default in zip(_SETTINGS, _DEFAULTS, strict=True)]
    if len(_split(image.removeprefix(_REFERENCE))) == 1:  # else all three, to tell them from the path's own
        while numbers and numbers[-1] == _DEFAULTS[len(numbers) - 1]:
            numbers.pop()
    return ":".join([f"{fields['model']}={image}", *(repr(number).removesuffix(".0") for number in numbers)])


def _split(text: str) -> list[Any]:
    """The path, and the numbers at its end: three at most."""
    numbers: list[float] = []
    while len(numbers) < len(_SETTINGS):
        path, colon, last = text.rpartition(":")
        if not colon or not path or not _NUMBER.fullmatch(last):
            break
        text = path
        numbers.insert(0, float(last))
    return [text, *numbers]

"""The fields that a prompt list may name, each checked alone, so that an error can point at it.

A value is checked by the type that the schema gives its field, and comes out in one form: `"30"`, `30` and
`30.0` are the same number of steps, `Euler_a` and `euler a` the same scheduler. What several fields mean
together is checked by the schema afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from renderkiln.producer.controlnets import FORM, parse_controlnet, parse_controlnets
from renderkiln.schema import JobOptions, RenderSpec, parse_request, parse_spec
from renderkiln.schema.errors import InvalidSpecError, did_you_mean

#: Paths until they are resolved, so the schema cannot check them yet.
_PATHS = ("init_image", "mask_image")
#: Stands for a ControlNet's picture while all else is checked.
_SOME_PICTURE = "sha256:" + "0" * 64
#: Fields in which alternatives and wildcards are taken for what they are.
PROMPT_FIELDS = ("prompt", "negative_prompt")
KNOWN = {**RenderSpec.model_fields, **JobOptions.model_fields}

#: What AUTOMATIC1111 and its relatives call our fields.
FOREIGN = {
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "cfg": "guidance_scale",
    "sampler_name": "scheduler",
    "sampler": "scheduler",
    "negative": "negative_prompt",
    "denoising_strength": "strength",
    "sd_model": "model",
    "sd_model_checkpoint": "model",
    "checkpoint": "model",
    "init_images": "init_image",
    "mask": "mask_image",
    "controlnet": "controlnets",
    "controlnet_units": "controlnets",
    "batch_size": "num_images",
    "batch_count": "num_images",
    "n_iter": "num_images",
}


class GivenControlNet(NamedTuple):
    """A `ControlNet` whose picture is still a path. Hashable, so that it can be swept; a list in JSON."""

    model: str
    image: str
    conditioning_scale: float
    guidance_start: float
    guidance_end: float


def unknown(name: str) -> InvalidSpecError:
    """The error for a field that does not exist; names the one that was meant, where it can be told."""
    right = FOREIGN.get(name.strip().casefold().replace(" ", "_"))
    hint = f" Here it is called {right!r}." if right else did_you_mean(name, KNOWN)
    shown = name if len(name) <= 60 else name[:57] + "…"
    return InvalidSpecError(f"unknown field {shown!r}.{hint or ' Known are ' + ', '.join(KNOWN) + '.'}")


def check(name: str, value: Any) -> Any:
    """The value of a field in its one form.

    Raises:
        InvalidSpecError: the field is unknown, or the value is not of its type or outside its limits.
    """
    if name not in KNOWN:
        raise unknown(name)
    if name in _PATHS:
        return None if value is None else _path(name, value)
    if name == "controlnets":
        return _controlnets(value)
    try:
        return _adapter(name).validate_python(value)
    except ValidationError:
        parse_request({"prompt": "", name: value})
        raise InvalidSpecError(f"{name}: {shorten(value)} is not valid") from None


def check_text(name: str, value: Any) -> str:
    """A prompt before its alternatives are expanded: text, of any length. Raises InvalidSpecError."""
    if isinstance(value, str) and "\0" not in value:
        try:
            value.encode()
        except UnicodeEncodeError:
            pass
        else:
            return value
    text: str = check(name, value)
    return text


def _path(name: str, value: Any) -> str:
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return value
    raise InvalidSpecError(f"{name}: expected the path of a picture, not {shorten(value)}")


def _controlnets(value: Any) -> tuple[GivenControlNet, ...]:
    """From a list of mappings and of texts like `canny=edges.png:0.8`, or one text with semicolons between them."""
    given = parse_controlnets(value) if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        raise InvalidSpecError(f"controlnets: expected a list, or {FORM}, not {shorten(value)}")
    entries: list[Any] = []
    paths: list[str] = []
    for number, entry in enumerate(given):
        if isinstance(entry, GivenControlNet):
            entry = entry._asdict()
        elif isinstance(entry, str):
            entry = parse_controlnet(entry)
        if isinstance(entry, Mapping) and "image" in entry:
            paths.append(_path(f"controlnets.{number}.image", entry["image"]))
            entry = {**entry, "image": _SOME_PICTURE}
        entries.append(entry)
    nets = parse_spec({"prompt": "", "controlnets": entries}).controlnets
    return tuple(GivenControlNet(**net.model_dump() | {"image": path}) for net, path in zip(nets, paths, strict=True))


def shorten(value: Any) -> str:
    """A value as an error shows it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "…"


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = KNOWN[name]
    parts = (field.annotation, *field.metadata)
    kind: Any = Annotated[parts] if field.metadata else field.annotation
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))

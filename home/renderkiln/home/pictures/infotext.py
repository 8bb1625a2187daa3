"""AUTOMATIC1111's `parameters` text, the form in which most programs read and write a picture's settings.

    a red hat, studio light
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 1, Size: 512x512, Model: sd15

A value with a comma, a colon or a line break stands in JSON's quotes. The form cannot hold every spec (a
prompt may itself look like settings), so files of ours carry JSON too; this text is read where there is none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.schedulers import canonical_name
from renderkiln.schema.spec import ControlNet, RenderSpec, parse_spec

#: Characters of foreign text that are looked at; two prompts of the longest kind are far below.
MAX_TEXT = 1_000_000
_MAX_PAIRS = 300
_NEGATIVE = "Negative prompt:"
_KEY = re.compile(r"\w[\w \-/]{1,99}")
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_decoder = json.JSONDecoder(strict=False)

#: Words of sampler names that are neither all capitals nor just capitalised.
_SPELLED = {"a": "a", "unipc": "UniPC", "euler": "Euler", "heun": "Heun", "karras": "Karras"}
#: Settings that are taken as they are.
_TEXTS = {
    "Model": "model",
    "Model revision": "revision",
    "Init image": "init_image",
    "Mask image": "mask_image",
    "Text encoder": "text_encoder",
    "Script": "script",
}
#: What a ControlNet's own setting, a text inside the text, says of it; named as AUTOMATIC1111's extension does.
_CONTROLNET = {
    "Model": "model",
    "Image": "image",
    "Weight": "conditioning_scale",
    "Guidance Start": "guidance_start",
    "Guidance End": "guidance_end",
}
#: Samplers that AUTOMATIC1111 runs with Karras sigmas when the schedule is left on "Automatic".
_KARRAS_BY_DEFAULT = {"dpm++ 2m", "dpm++ sde", "dpm++ 2s a", "dpm2", "dpm2 a"}


@dataclass(frozen=True)
class ParsedParameters:
    """What a `parameters` text says."""

    #: Fields of a `RenderSpec`; each is valid, and they are valid together.
    fields: dict[str, Any] = field(default_factory=dict)
    #: What no field of ours stands for, or what our fields do not allow, as it was written.
    other: dict[str, str] = field(default_factory=dict)


def parameters_text(spec: RenderSpec, size: tuple[int, int] | None = None) -> str:
    """The text for one image's spec; `size`: (width, height) in pixels where the model decided it."""
    values: dict[str, Any] = {"Steps": spec.num_inference_steps}
    if spec.scheduler is not None:
        values["Sampler"] = _display_name(spec.scheduler)
    values["CFG scale"] = _number(spec.guidance_scale)
    values["Seed"] = spec.seed
    width, height = size or (spec.width, spec.height)
    if width and height:
        values["Size"] = f"{width}x{height}"
    values["Model"] = spec.model
    if spec.revision is not None:
        values["Model revision"] = spec.revision
    if spec.init_image is not None:
        values["Denoising strength"] = _number(spec.strength)
        values["Init image"] = spec.init_image
    if spec.mask_image is not None:
        values["Mask image"] = spec.mask_image
    for number, net in enumerate(spec.controlnets):
        values[f"ControlNet {number}"] = _controlnet_text(net)
    if spec.clip_skip is not None:
        # AUTOMATIC1111 names the layer that is used (1: the last); diffusers counts those left out.
        values["Clip skip"] = spec.clip_skip + 1
    if spec.text_encoder != "model":
        values["Text encoder"] = spec.text_encoder
        values["Script"] = spec.script
    if spec.rng == "numpy":
        values["RNG"] = "NumPy"
    if not spec.safety_checker:
        values["Safety checker"] = "off"
    settings = ", ".join(f"{key}: {_quote(str(value))}" for key, value in values.items())
    negative = f"\n{_NEGATIVE} {spec.negative_prompt}" if spec.negative_prompt else ""
    return f"{spec.prompt}{negative}\n{settings}".strip()


def parse_parameters_text(text: str) -> ParsedParameters:
    """Reads a `parameters` text of any program, as far as it goes; never raises."""
    *lines, last = text[:MAX_TEXT].strip().split("\n")
    pairs = dict(_pairs(last))
    if len(pairs) < 3:  # AUTOMATIC1111's own rule for telling a line of settings from a line of prompt
        lines.append(last)
        pairs = {}
    prompts: dict[bool, list[str]] = {False: [], True: []}
    is_negative = False
    for line in lines:
        stripped = line.strip()
        if stripped.startswith(_NEGATIVE):
            is_negative, stripped = True, stripped.removeprefix(_NEGATIVE).strip()
        prompts[is_negative].append(stripped)
    fields: dict[str, Any] = {}
    other: dict[str, str] = {}
    for name, said in (("prompt", prompts[False]), ("negative_prompt", prompts[True])):
        if name == "prompt" or said:
            _take(fields, other, name, {name: "\n".join(said)}, "\n".join(said))
    for key, value in sorted(pairs.items(), key=lambda pair: pair[0] == "Denoising strength"):
        try:
            found: dict[str, Any] | None
            if key.startswith("ControlNet "):
                found = {"controlnets": [*fields.get("controlnets", ()), _controlnet(value)]}
            else:
                found = _translate(key, value, pairs)
        except (KeyError, ValueError, InvalidSpecError):
            found = {}
        if found is not None:
            _take(fields, other, key, found, value)
    return ParsedParameters(fields, other)


def _take(fields: dict[str, Any], other: dict[str, str], key: str, found: dict[str, Any], text: str) -> None:
    """Adds `found` to the fields if a spec allows them beside those already there; else keeps the text."""
    try:
        if not found:
            raise InvalidSpecError(f"nothing of ours stands for {key}")
        parse_spec({"prompt": "", **fields, **found})
    except InvalidSpecError:
        other[key] = text
    else:
        fields.update(found)


def _translate(key: str, value: str, pairs: Mapping[str, str]) -> dict[str, Any] | None:
    """The spec's fields for one setting; empty: none of ours; None: said already by another setting."""
    if key == "Sampler":
        return {"scheduler": _scheduler(value, pairs.get("Schedule type", ""))}
    if key == "Schedule type":
        known = value.casefold() in ("automatic", "karras", "uniform") and "Sampler" in pairs
        return None if known else {}
    if key == "Size":
        match = _SIZE.fullmatch(value)
        return {"width": int(match[1]), "height": int(match[2])} if match else {}
    if key == "Clip skip":
        return {"clip_skip": int(value) - 1} if int(value) != 1 else None
    if key == "RNG":
        return {"numpy": {"rng": "numpy"}, "cpu": {"rng": "torch"}}.get(value.casefold(), {})
    if key == "Safety checker":
        return {"safety_checker": value.casefold() != "off"}
    if key in ("Steps", "Seed"):
        return {"num_inference_steps" if key == "Steps" else "seed": int(value)}
    if key in ("CFG scale", "Denoising strength"):
        return {"guidance_scale" if key == "CFG scale" else "strength": float(value)}
    if _TEXTS.get(key) == "init_image" and "Denoising strength" in pairs:
        # The two are checked together: few steps go with a high strength only.
        return {"init_image": value, "strength": float(pairs["Denoising strength"])}
    return {_TEXTS[key]: value} if key in _TEXTS else {}


def _controlnet_text(net: ControlNet) -> str:
    values = {key: getattr(net, name) for key, name in _CONTROLNET.items()}
    return ", ".join(f"{key}: {_number(value) if isinstance(value, float) else value}" for key, value in values.items())


def _controlnet(text: str) -> dict[str, Any]:
    """A ControlNet's fields. KeyError: something is not ours, such as a preprocessor; ValueError: a value is wrong."""
    pairs = (pair.partition(":") for pair in text.split(","))
    fields = {_CONTROLNET[key.strip()]: value.strip() for key, _, value in pairs}
    return ControlNet.model_validate(fields).model_dump()


def _scheduler(sampler: str, schedule: str) -> str:
    folded = sampler.strip().casefold()
    karras = schedule.casefold() == "karras" or (schedule == "Automatic" and folded in _KARRAS_BY_DEFAULT)
    if karras and not folded.endswith("karras"):
        return canonical_name(f"{sampler} karras")
    return canonical_name(sampler)


def _display_name(scheduler: str) -> str:
    if scheduler.endswith("Scheduler"):
        return scheduler
    return " ".join(_SPELLED.get(word, word.upper()) for word in scheduler.split(" "))


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(char in value for char in ",:\n") else value


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """The `key: value` pairs of a line of settings, in one pass, however long and odd the line."""
    at = 0
    for _ in range(_MAX_PAIRS):
        colon = line.find(":", at)
        if colon < 0:
            return
        key = line[max(at, line.rfind(",", at, colon) + 1) : colon].strip()
        start = colon + 1
        while start < len(line) and line[start] == " ":
            start += 1
        end = -1
        value = ""
        if line.startswith('"', start):
            try:
                value, end = _decoder.raw_decode(line, start)
            except ValueError:
                end = -1
            if end >= 0 and line[end : end + 1] not in ("", ","):
                end = -1  # the quotes hold only a part of the value
        if end < 0:
            comma = line.find(",", start)
            end = comma if comma >= 0 else len(line)
            value = line[start:end].strip()
        if _KEY.fullmatch(key):
            yield key, value
        at = end + 1

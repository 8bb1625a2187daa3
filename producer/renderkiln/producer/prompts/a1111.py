"""Reads a line of options, as AUTOMATIC1111's "Prompts from file" has them.

    --prompt "a red hat" --negative_prompt blurry, dark --steps 30 --cfg_scale 7 --sampler_name "Euler a"
    --seed 1

Words are split as a POSIX shell splits them; after `--prompt` and `--negative_prompt` everything up to the
next `--` is the text. Our own field names may be used beside theirs. What would silently make another picture
is refused; what asks for nothing (`--tiling false`) passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from renderkiln.schema.errors import InvalidSpecError, did_you_mean

from .fields import KNOWN, PROMPT_FIELDS, check, check_text, shorten
from .model import Row, Where

_ALIASES = {
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "sampler_name": "scheduler",
    "controlnet": "controlnets",
}
_COUNTS = ("batch_size", "n_iter")
#: Flags that may be off; on, they ask for what is not done here.
_FLAGS = {
    "restore_faces": "faces are not restored",
    "tiling": "tiling pictures are not made",
    "do_not_save_samples": "every picture is saved",
}
#: Changes no picture.
_IGNORED = ("do_not_save_grid",)
_REFUSED = {
    "sd_model": "name the model with --model",
    "outpath_samples": "all pictures of a list go where --out of the command says",
    "outpath_grids": "all pictures of a list go where --out of the command says",
    "prompt_for_display": "the prompt itself is kept with the picture",
    "styles": "write the style's text into the prompt",
    "subseed": "variation seeds are not made",
    "subseed_strength": "variation seeds are not made",
    "seed_resize_from_h": "seeds are not resized",
    "seed_resize_from_w": "seeds are not resized",
    "sampler_index": "name the sampler with --sampler_name",
}
_SUPPORTED = ("prompt", "negative_prompt", "seed", *_ALIASES, "width", "height", *_COUNTS)


class _Word(NamedTuple):
    text: str
    at: int


def parse_line(text: str, start: Where) -> Row:
    """The row of a line that starts with `--`; `start` is where it stands. Raises PromptListError."""
    fields: dict[str, Any] = {}
    places: dict[str, Where] = {}
    counts: dict[str, int] = {}
    seen: set[str] = set()
    words = list(_words(text, start))
    at = 0
    while at < len(words):
        option, place = words[at].text, start.shifted(words[at].at)
        if not option.startswith("--"):
            raise place.error(f"expected an option such as --steps, found {shorten(option)}; put text into quotes")
        name = option[2:].replace("-", "_")
        field = _ALIASES.get(name, name)
        if field not in KNOWN and name not in (*_COUNTS, *_FLAGS, *_IGNORED):
            raise place.error(_refusal(option, name))
        if field != "controlnets" and (name in seen or field in fields):
            raise place.error(f"{option} is given twice")
        seen.add(name)
        at += 1
        if at == len(words) or (words[at].text.startswith("--") and text[words[at].at] == "-"):
            raise place.error(f"{option} has no value")
        value, place = words[at].text, start.shifted(words[at].at)
        at += 1
        if field in PROMPT_FIELDS:
            while at < len(words) and not words[at].text.startswith("--"):
                value += " " + words[at].text
                at += 1
        try:
            if name in _COUNTS:
                counts[name] = check("num_images", value)
            elif name in _FLAGS:
                _must_be_off(option, name, value)
            elif field == "controlnets":
                fields[field] = check(field, [*fields.get(field, ()), *check(field, value)])
                places.setdefault(field, place)
            elif field in KNOWN and not (field == "seed" and value.strip() == "-1"):
                fields[field] = (check_text if field in PROMPT_FIELDS else check)(field, value)
                places[field] = place
        except InvalidSpecError as error:
            said = str(error).replace("num_images", name) if name in _COUNTS else str(error)
            raise place.error(said) from None
    _count_images(fields, places, counts, start)
    return Row(fields, start, lambda name, _offset: places.get(name, start))


def _count_images(fields: dict[str, Any], places: dict[str, Where], counts: dict[str, int], start: Where) -> None:
    if not counts:
        return
    if "num_images" in fields:
        raise places["num_images"].error("--num_images together with --batch_size or --n_iter; give one of them")
    product = 1
    for count in counts.values():
        product *= count
    try:
        fields["num_images"] = check("num_images", product)
    except InvalidSpecError as error:
        raise start.error(f"batch_size × n_iter: {error}") from None


def _must_be_off(option: str, name: str, value: str) -> None:
    if value.casefold() == "true":
        raise InvalidSpecError(f"{option} true is not supported: {_FLAGS[name]}")
    if value.casefold() != "false":
        raise InvalidSpecError(f"{option}: expected true or false, found {shorten(value)}")


def _refusal(option: str, name: str) -> str:
    supported = "Supported are " + ", ".join(f"--{known}" for known in _SUPPORTED) + " and the names of our fields."
    if name in _REFUSED:
        return f"{option} is not supported: {_REFUSED[name]}. {supported}"
    hint = did_you_mean(option[:60], [f"--{known}" for known in (*_SUPPORTED, *KNOWN)])
    return f"unknown option {shorten(option)}.{hint} {supported}"


def _words(text: str, start: Where) -> Iterator[_Word]:
    """Splits like a POSIX shell: quotes of both kinds, a backslash before any character outside them."""
    at, begin = 0, -1
    said: list[str] = []
    while at < len(text):
        here = text[at]
        if here in " \t\r\n":
            if begin >= 0:
                yield _Word("".join(said), begin)
                said, begin = [], -1
            at += 1
            continue
        begin = at if begin < 0 else begin
        if here in "'\"":
            part, at = _quoted(text, at, start)
            said.append(part)
        elif here == "\\":
            if at + 1 == len(text):
                raise start.shifted(at).error("a backslash at the end of the line; expected a character after it")
            said.append(text[at + 1])
            at += 2
        else:
            said.append(here)
            at += 1
    if begin >= 0:
        yield _Word("".join(said), begin)


def _quoted(text: str, at: int, start: Where) -> tuple[str, int]:
    """The text inside a quote that opens at `at`, and where it goes on after it."""
    quote, begin = text[at], at
    said: list[str] = []
    at += 1
    while at < len(text):
        if text[at] == quote:
            return "".join(said), at + 1
        if quote == '"' and text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\"):
            at += 1
            if at == len(text):
                break
        said.append(text[at])
        at += 1
    raise start.shifted(begin).error(f"the quote {quote} is not closed")

"""The options that `render` and `submit` share: the fields of a spec and a job, and how lists are read.

They are declared once, and put into a command's signature by `with_request`, because Typer reads signatures.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from renderkiln.producer.controlnets import FORM, parse_controlnet
from renderkiln.schema.errors import InvalidSpecError
from renderkiln.schema.jobs import JobOptions
from renderkiln.schema.spec import RenderSpec

DataDir = Annotated[Path | None, typer.Option(help="The one folder of ledger, server and models.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts: JSON on standard output.")]
PROMPTS_HELP = "Prompts, or files of prompts (.txt .csv .jsonl .yaml), or '-'."
Out = Annotated[str | None, typer.Option(help="The store: a folder or an fsspec URL.", show_default=False)]

#: Fields whose option is not simply their type with their name.
_TYPES: dict[str, Any] = {
    "seed": str,
    "init_image": str,
    "mask_image": str,
    "guidance_scale": float,
    "strength": float,
    "timeout": float,
    "num_inference_steps": int,
    "width": int,
    "height": int,
    "clip_skip": int,
    "num_images": int,
    "max_attempts": int,
}
_HELP = {
    "seed": "Seed of the first image, or 'random'. Without it, derived from the prompt: the same command resumes.",
    "init_image": "Picture file to start from (image-to-image, inpainting).",
    "mask_image": "Mask file for inpainting: white is painted, black stays.",
}
_SPEC_PANEL, _LIST_PANEL = "What to render", "How lists are read"


@dataclass(frozen=True)
class RequestOptions:
    """What the shared options came to."""

    #: Fields of spec and job that were given.
    fields: Mapping[str, Any]
    random_seeds: bool
    sweeps: tuple[str, ...]
    wildcards: Path | None
    combinations: bool
    literal: bool
    format: str | None
    again: bool


def with_request(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, which takes `request: RequestOptions`, all the shared options instead."""
    own = inspect.signature(command, eval_str=True)
    shared = _field_parameters() + _list_parameters()
    names = {parameter.name for parameter in shared}

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        request = _collect({name: values.pop(name) for name in names})
        command(request=request, **values)

    mine = [parameter for parameter in own.parameters.values() if parameter.name != "request"]
    positional = [parameter for parameter in mine if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
    keyword = [parameter for parameter in mine if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
    parameters = [*positional, *shared, *keyword]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def _field_parameters() -> list[inspect.Parameter]:
    found = []
    for model in (RenderSpec, JobOptions):
        for name, field in model.model_fields.items():
            if name in ("prompt", "labels", "store", "controlnets"):
                continue
            flag = "--" + name.replace("_", "-")
            kind = _TYPES.get(name, str)
            names = [flag]
            if name == "safety_checker":
                kind, names = bool, [f"{flag}/--no-safety-checker"]
            text = _HELP.get(name) or field.description or ""
            if field.default is not None and name not in _HELP and not field.is_required():
                text += f" [default: {field.default}]" if field.default != "" else ""
            option = typer.Option(*names, help=text, show_default=False, rich_help_panel=_SPEC_PANEL)
            found.append(_parameter(name, kind | None, option, None))
    controlnet = typer.Option(
        "--controlnet",
        metavar=FORM,
        help="A ControlNet, its picture, how closely to follow it (1), and between which shares of the steps (0, 1); "
        "repeatable.",
        show_default=False,
        rich_help_panel=_SPEC_PANEL,
    )
    found.append(_parameter("controlnet", list[str] | None, controlnet, None))
    label = typer.Option("--label", help="NAME=VALUE kept with the jobs (repeatable).", rich_help_panel=_SPEC_PANEL)
    found.append(_parameter("label", list[str] | None, label, None))
    return found


def _list_parameters() -> list[inspect.Parameter]:
    def option(*names: str, text: str) -> Any:
        return typer.Option(*names, help=text, show_default=False, rich_help_panel=_LIST_PANEL)

    return [
        _parameter(
            "sweep",
            list[str] | None,
            option("--sweep", text="FIELD=VALUES: each prompt with each of 5,7.5,10 or 1..8 (repeatable)."),
            None,
        ),
        _parameter(
            "wildcards", Path | None, option("--wildcards", text="Folder of the files that __name__ draws from."), None
        ),
        _parameter(
            "combinations", bool, option("--combinations", text="Every combination of {a|b}, not one of them."), False
        ),
        _parameter("literal", bool, option("--literal", text="Take {a|b} and __name__ as they stand."), False),
        _parameter(
            "list_format", str | None, option("--format", text="Form of a list: txt, csv, jsonl or yaml."), None
        ),
        _parameter("again", bool, option("--again", text="Render anew what is there already."), False),
    ]


def _parameter(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _collect(values: dict[str, Any]) -> RequestOptions:
    own = ("sweep", "wildcards", "combinations", "literal", "list_format", "again", "label", "controlnet")
    rest = {name: values.pop(name) for name in own}
    fields = {name: value for name, value in values.items() if value is not None}
    random_seeds = str(fields.get("seed", "")).casefold() == "random"
    if random_seeds:
        del fields["seed"]
    elif "seed" in fields:
        fields["seed"] = _seed(fields["seed"])
    if rest["label"]:
        fields["labels"] = dict(_label(text) for text in rest["label"])
    if rest["controlnet"]:
        fields["controlnets"] = [parse_controlnet(text) for text in rest["controlnet"]]
    return RequestOptions(
        fields=fields,
        random_seeds=random_seeds,
        sweeps=tuple(rest["sweep"] or ()),
        wildcards=rest["wildcards"],
        combinations=rest["combinations"],
        literal=rest["literal"],
        format=rest["list_format"],
        again=rest["again"],
    )


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidSpecError(f"--seed {text!r}: expected a number from 0 to 4294967295, or 'random'") from None


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidSpecError(f"--label {text!r}: expected NAME=VALUE")
    return name, value

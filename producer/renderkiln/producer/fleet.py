"""Whether any of the workers that are alive can render what is asked for."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from renderkiln.home.controlnets import find_controlnet
from renderkiln.home.folder import DataFolder
from renderkiln.home.models import engines_of, find_model, fixed_sizes
from renderkiln.schema.errors import BadInputError, InvalidSpecError, ModelNotFoundError, did_you_mean
from renderkiln.schema.spec import RenderSpec, TextEncoder
from renderkiln.schema.workers import WorkerInfo


class Need(NamedTuple):
    """What a spec needs a worker to have."""

    model: str
    #: Each once.
    controlnets: tuple[str, ...] = ()
    #: Pixels; None: the model's own.
    width: int | None = None
    height: int | None = None
    text_encoder: TextEncoder = "model"

    @classmethod
    def of(cls, spec: RenderSpec) -> Need:
        controlnets = tuple(dict.fromkeys(net.model for net in spec.controlnets))
        return cls(spec.model, controlnets, spec.width, spec.height, spec.text_encoder)


def can_render(worker: WorkerInfo, need: Need) -> bool:
    """Whether a worker has the model, the ControlNets, the text encoder and the size."""
    has_parts = need.model in worker.models and not _missing(worker, need) and _can_read(worker, need)
    return has_parts and _has_size(worker, need)


def check_needs(
    workers: Sequence[WorkerInfo],
    folder: DataFolder,
    needs: Mapping[Need, str],
    *,
    local: bool,
    engine: str = "auto",
) -> None:
    """Refuses what nobody can render, as far as can be known here.

    Live workers know best. Where none is up, the models of this machine count if the worker will be on this machine
    (`local`); otherwise the job is queued for a worker to come.

    Args:
        needs: with the place where each is asked for, as the message is to begin; empty: with nothing.
        engine: what a worker of this machine will render with.

    Raises:
        ModelNotFoundError: nobody has the model or a ControlNet; with the nearest names.
        InvalidSpecError: all who have them render other sizes only (with these), or cannot read the prompts as asked.
    """
    for need, place in needs.items():
        try:
            _check(workers, folder, need, engine if local else None)
        except BadInputError as error:
            if not place:
                raise
            raise type(error)(f"{place}: {error}") from None


def _check(workers: Sequence[WorkerInfo], folder: DataFolder, need: Need, engine: str | None) -> None:
    """`engine`: of the worker that will be on this machine; None: there will be none."""
    having = [worker for worker in workers if need.model in worker.models]
    if not having:
        if engine is not None:
            _check_here(folder, need, engine)
        elif workers:
            offered = (name for worker in workers for name in worker.models)
            raise ModelNotFoundError(f"model {need.model!r} is on none of {_nobody(len(workers), need.model, offered)}")
        return
    able = [worker for worker in having if not _missing(worker, need)]
    if not able:
        _check_controlnets(having, need)
        return
    able = [worker for worker in able if _can_read(worker, need)]
    if not able:
        raise InvalidSpecError(f"text_encoder: no worker that is up renders {need.model!r} {_unread(need)}")
    if not any(_has_size(worker, need) for worker in able):
        sizes = sorted({size for worker in able for size in worker.sizes[need.model]})
        there = ", ".join(f"{width} × {height}" for width, height in sizes)
        raise InvalidSpecError(
            f"{_wanted(need)}: no worker that is up renders {need.model!r} in this size. There are: {there}."
        )


def _check_here(folder: DataFolder, need: Need, engine: str) -> None:
    path = find_model(folder, need.model)
    engines = engines_of(path)
    if engine != "auto" and engines and engine not in engines:
        make = "this takes weights in diffusers' layout"
        if engine != "torch":
            make = (
                f"`renderkiln convert --format {engine} MODEL -o FOLDER` makes what this takes, "
                "`renderkiln models add FOLDER` takes it in, and --model FOLDER renders with it"
            )
        raise InvalidSpecError(
            f"engine {engine}: model {need.model!r} has something for {' and '.join(sorted(engines))} only; {make}. "
            "Leave the engine out to render with what there is."
        )
    if need.text_encoder != "model" and platform.system() != "Darwin":
        raise InvalidSpecError(f"text_encoder: this machine cannot render {need.model!r} {_unread(need)}")
    sizes = fixed_sizes(path)
    if sizes and need.width and need.height and (need.width, need.height) not in sizes:
        there = ", ".join(f"{width} × {height}" for width, height in sorted(sizes))
        raise InvalidSpecError(f"{_wanted(need)}: {need.model!r} was converted for other sizes. There are: {there}.")
    # A converted model brings its own ControlNets. Which, its worker will say.
    if any(path.glob("manifest.json")) or any(path.glob("*/manifest.json")):
        return
    for name in need.controlnets:
        find_controlnet(folder, name)


def _check_controlnets(having: Sequence[WorkerInfo], need: Need) -> None:
    for name in need.controlnets:
        if all(name in _missing(worker, need) for worker in having):
            offered = (each for worker in having for each in worker.controlnets[need.model])
            raise ModelNotFoundError(
                f"ControlNet {name!r} is on none of {_nobody(len(having), name, offered, f' with {need.model!r}')}"
            )
    raise ModelNotFoundError(
        f"none of the {len(having)} workers that have {need.model!r} has all of {', '.join(need.controlnets)}."
    )


def _nobody(count: int, name: str, offered: Iterable[str], which: str = "") -> str:
    known = sorted(set(offered))
    return (
        f"the {count} workers{which} that are up.{did_you_mean(name, known)} They have: {', '.join(known) or 'none'}."
    )


def _missing(worker: WorkerInfo, need: Need) -> list[str]:
    """The ControlNets that the worker is known not to have for the model."""
    there = worker.controlnets.get(need.model)
    if there is None:
        return []
    return [name for name in need.controlnets if name not in there and name.replace("/", "_") not in there]


def _can_read(worker: WorkerInfo, need: Need) -> bool:
    return need.text_encoder in worker.text_encoders.get(need.model, (need.text_encoder,))


def _unread(need: Need) -> str:
    if need.text_encoder == "model":
        return "with a text encoder of its own. It is made for macOS's: ask for system-multilingual."
    return (
        "with macOS's text encoder, which takes macOS 14 or later, and a model that was converted with "
        "--multilingual-projection."
    )


def _has_size(worker: WorkerInfo, need: Need) -> bool:
    sizes = worker.sizes.get(need.model)
    if not sizes or (need.width is None and need.height is None):
        return True
    own_width, own_height = sizes[0]
    return (need.width or own_width, need.height or own_height) in sizes


def _wanted(need: Need) -> str:
    if need.width and need.height:
        return f"{need.width} × {need.height}"
    return f"width {need.width}" if need.width else f"height {need.height}"

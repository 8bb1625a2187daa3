"""From the command line's words to jobs: lists are read and checked whole before anything is queued."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from renderkiln.home.settings import Settings
from renderkiln.producer.fleet import Need
from renderkiln.producer.inputs import InputCarrier
from renderkiln.schema.errors import BadInputError, InvalidSpecError
from renderkiln.schema.jobs import Job, make_job, parse_request

from .options import RequestOptions

if TYPE_CHECKING:
    from renderkiln.producer.prompts import Request


@dataclass(frozen=True)
class Prepared:
    """A checked submission. `jobs()` reads the lists again, so that memory does not grow with them."""

    batch: str
    name: str
    num_jobs: int
    num_images: int
    #: What its jobs need, with the place in a list where each is asked for first; empty for a prompt by itself.
    needs: Mapping[Need, str]
    jobs: Callable[[], Iterator[Job]]
    #: What a person should know of the picture that was gone by; empty: its settings are exact.
    remark: str = ""

    @property
    def models(self) -> tuple[str, ...]:
        """The models of its jobs, each once."""
        return tuple(dict.fromkeys(need.model for need in self.needs))


def prepare(
    sources: Sequence[str],
    request: RequestOptions,
    settings: Settings,
    carrier: InputCarrier,
    *,
    store: str | None,
    like: Path | None = None,
) -> Prepared:
    """Reads and checks everything; nothing is queued here.

    Raises:
        BadInputError: and what it says names file, line and column where there are such.
    """
    fields: dict[str, Any] = {"model": settings.model, "image_format": settings.image_format}
    remark = ""
    if like is not None:
        found, remark = _settings_of(like)
        fields |= found
    fields |= request.fields
    if store is not None:
        fields["store"] = store
    if not sources and like is None:
        raise BadInputError("nothing to render: give a prompt, a list, or '-' for standard input.")
    nonce = secrets.token_hex(4) if request.again else ""
    name, requests = _requests(sources, request, fields, carrier, like)
    digest, num_jobs, num_images = hashlib.sha256(), 0, 0
    needs: dict[Need, str] = {}
    for job in _jobs(_noting(requests(), needs), "check", nonce):
        digest.update(job.id.encode())
        num_jobs += 1
        num_images += job.num_images
    if not num_jobs:
        raise BadInputError(f"{', '.join(sources)}: no prompts in it.")
    batch = f"{name}-{digest.hexdigest()[:8]}"
    return Prepared(batch, name, num_jobs, num_images, needs, lambda: _jobs(requests(), batch, nonce), remark)


def _noting(requests: Iterable[Request], needs: dict[Need, str]) -> Iterator[Request]:
    """Passes requests on, and notes what each needs, and where it stands if that is in a list."""
    from renderkiln.producer.prompts import PROMPT

    for request in requests:
        where = request.where
        needs.setdefault(Need.of(request.spec), "" if where.source == PROMPT else str(where))
        yield request


def _requests(
    sources: Sequence[str],
    request: RequestOptions,
    fields: dict[str, Any],
    carrier: InputCarrier,
    like: Path | None,
) -> tuple[str, Callable[[], Iterable[Request]]]:
    from renderkiln.home.pictures.naming import batch_name
    from renderkiln.producer import prompts

    if like is not None and not sources:
        carrier.resolve(fields)
        _one_seed_only(request, like)
        one = prompts.Request(*parse_request(fields), prompts.Where(prompts.PROMPT))
        return batch_name(one.spec.prompt), lambda: [one]
    options = prompts.ListOptions(
        defaults={name: value for name, value in fields.items() if name != "prompt"},
        sweeps=tuple(prompts.parse_sweep(text) for text in request.sweeps),
        wildcards=request.wildcards,
        combinations=request.combinations,
        expand=not request.literal,
        random_seeds=request.random_seeds,
        format=request.format,
    )
    lists = [prompts.read(source, options) for source in sources]

    def found() -> Iterator[Request]:
        for each in prompts.requests(lists, carrier.add):
            for reference in each.spec.pictures:
                carrier.add(reference)  # a list may name a picture by its digest: it has to be here
            yield each

    return lists[0].name, found


def _one_seed_only(request: RequestOptions, like: Path) -> None:
    if request.sweeps or request.random_seeds:
        raise InvalidSpecError(f"--like {like} without a prompt is one job: sweeps and 'random' do not go with it")


def _settings_of(like: Path) -> tuple[dict[str, Any], str]:
    """The fields inside a picture, and what is to be said of them."""
    from renderkiln.home.pictures.read import read_metadata

    shown = read_metadata(like)
    if shown.spec is None:
        raise BadInputError(f"{like} holds no settings to go by. `renderkiln show {like}` says what is in it.")
    spec = shown.spec
    fields = spec.model_dump(mode="json", exclude_defaults=True) | {"model": spec.model, "seed": spec.seed}
    if shown.is_exact:
        return fields, ""
    remark = shown.note or "its settings are another program's, and read as far as they go"
    left_out = f"; left out: {', '.join(list(shown.other)[:10])}" if shown.other else ""
    return fields, f"{like}: {remark}{left_out}"


def _jobs(requests: Iterable[Request], batch: str, again: str) -> Iterator[Job]:
    index = 0
    for each in requests:
        yield make_job(each.spec, each.options, batch=batch, index=index, again=again)
        index += each.options.num_images

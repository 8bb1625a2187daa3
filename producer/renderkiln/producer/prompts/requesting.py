"""From items to requests: pictures and stores resolved, and everything checked that can be checked without a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from renderkiln.producer.inputs import PICTURE_FIELDS, with_references
from renderkiln.producer.stores import store_for_jobs
from renderkiln.schema import JobOptions, RenderSpec, parse_request
from renderkiln.schema.errors import BadInputError, InvalidSpecError

from .expand import Seen
from .lists import PromptList
from .model import Item, Request, Where

#: Takes a path and the folder that it is relative to; returns the `sha256:…` of the picture there. The same
#: picture is asked for as often as it is named.
ResolveImage: TypeAlias = Callable[[str, Path], str]


def requests(lists: Iterable[PromptList], resolve_image: ResolveImage) -> Iterator[Request]:
    """The jobs that the lists ask for, in their order.

    Equal items are counted across the lists: two equal prompts give two pictures, also from two files.

    Raises:
        PromptListError: an entry is not a job that can be rendered; says where it stands.
    """
    seen = Seen()
    for each in lists:
        for item in each.items(seen):
            fields = _resolved(item, resolve_image)
            try:
                spec, options = parse_request(fields)
            except InvalidSpecError as error:
                raise _culprit(item, fields).error(str(error)) from None
            yield Request(spec, options, item.where)


def _resolved(item: Item, resolve_image: ResolveImage) -> dict[str, Any]:
    """The fields with the paths that begin at the list's folder (or the working one, for flags) made good."""
    names = [name for name in (*PICTURE_FIELDS, "store") if item.fields.get(name)]
    if not names:
        return item.fields
    fields = dict(item.fields)
    if "controlnets" in names:
        fields["controlnets"] = [net._asdict() for net in fields["controlnets"]]
    for name in names:
        folder = Path() if name in item.outside else item.folder
        find = partial(_found, store_for_jobs if name == "store" else resolve_image, folder)
        try:
            fields[name] = find(fields[name]) if name == "store" else with_references(name, fields[name], find)
        except BadInputError as error:
            raise item.place(name).error(f"{name}: {error}") from error
    return fields


def _found(resolve: ResolveImage, folder: Path, path: str) -> str:
    return path if path.startswith("sha256:") else resolve(path, folder)


def _culprit(item: Item, fields: dict[str, Any]) -> Where:
    """Where the first field stands that the schema refuses."""
    try:
        RenderSpec.model_validate({name: fields[name] for name in fields if name not in JobOptions.model_fields})
    except ValidationError as error:
        for finding in error.errors(include_url=False):
            if finding["loc"] and finding["loc"][0] in item.fields:
                return item.place(str(finding["loc"][0]))
    return item.where

"""Fetches from the Hugging Face Hub what a conversion needs and no more: small files, and one precision of the weights.

What is in the Hub's cache is used without a network; HF_HUB_OFFLINE is honoured.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from renderkiln.schema.errors import HubUnavailableError, ModelFetchError, ModelNotFoundError

from ..models.hub import COMPONENTS, INDEX, errors_as_ours, library, list_files, small_files, weights_of

#: What makes a name a pattern for the library.
_SPECIAL = re.compile(r"[*?\[]")


def fetch_model(repository: str, revision: str | None) -> tuple[Path, str | None]:
    """A model's snapshot folder and its commit. Raises ModelNotFoundError and ModelFetchError."""
    present = _files(repository, revision)
    weights = [name for component in COMPONENTS for name in weights_of(present, f"{component}/")]
    folder = _snapshot(repository, revision, [*small_files(present), *weights])
    if not (folder / INDEX).is_file():
        raise ModelNotFoundError(f"{repository} is no model in diffusers' layout: it has no {INDEX}")
    return folder, folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision


def fetch_small_files(repository: str) -> Path:
    """The folder of a model's configs and tokenizers, without its weights.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelFetchError: the Hub cannot be reached, or refuses.
    """
    try:
        return _snapshot(repository, None, small_files(_files(repository, None)))
    except (ModelNotFoundError, ModelFetchError) as error:
        raise type(error)(
            f"a checkpoint file has no config, tokenizer or scheduler; they come from {repository}, which is not to be "
            f"had ({error}). Give a diffusers folder that has them with --config"
        ) from error


def fetch_component(repository: str, subfolder: str) -> Path:
    """The folder of one model, or of a pipeline that has it as a subfolder.

    Raises:
        ModelNotFoundError: there is no such repository.
        ModelFetchError: the Hub cannot be reached, or refuses.
    """
    present = _files(repository, None)
    prefix = f"{subfolder}/" if f"{subfolder}/config.json" in present else ""
    return _snapshot(repository, None, [f"{prefix}config.json", *weights_of(present, prefix)])


def _files(repository: str, revision: str | None) -> Collection[str]:
    """What a repository holds; without a network, what the cache holds of it."""
    if not library().constants.HF_HUB_OFFLINE:
        try:
            return list_files(repository, revision).files
        except HubUnavailableError:
            pass
    # Without a pattern nothing is wanted, so the library does not mind that the cache has only part of a repository.
    folder = _snapshot(repository, revision, [])
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _snapshot(repository: str, revision: str | None, names: Iterable[str]) -> Path:
    hub = library()
    with errors_as_ours(repository, revision):
        return Path(
            hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[_SPECIAL.sub("?", name) for name in names],
                local_files_only=bool(hub.constants.HF_HUB_OFFLINE),
            )
        )

"""The Hugging Face Hub: its library, what a repository holds, which of its files are wanted, and its errors as ours.

`models pull` and `convert` both stand on this.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from renderkiln.schema.errors import (
    HubUnavailableError,
    ModelAccessError,
    ModelFetchError,
    ModelGatedError,
    ModelNotFoundError,
    RenderkilnError,
    RevisionNotFoundError,
    WorkerUnavailableError,
)

#: What a repository may be called.
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
#: The folders with weights in diffusers' layout.
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae", "safety_checker")
#: Folders of files that are small throughout.
SMALL_FOLDERS = ("tokenizer", "tokenizer_2", "scheduler", "feature_extractor")
SMALL_SUFFIXES = (".json", ".txt")
INDEX = "model_index.json"
_CONTROLNET = "controlnet"
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_STEMS = ("model", "diffusion_pytorch_model")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository."""

    name: str
    size_bytes: int
    #: Of files in the Hub's large storage; the others have `blob` alone.
    sha256: str | None
    #: git's own digest: SHA-1 over a header and the content. Of a large file, that of its pointer.
    blob: str


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit."""

    repository: str
    commit: str
    #: By name.
    files: Mapping[str, HubFile]


def list_files(repository: str, revision: str | None) -> Listing:
    """What a repository holds. Raises ModelNotFoundError and ModelFetchError."""
    hub = library()
    with errors_as_ours(repository, revision):
        api = hub.HfApi(endpoint=hub.constants.ENDPOINT)
        commit = api.repo_info(repository, revision=revision).sha
        entries = list(api.list_repo_tree(repository, revision=commit, recursive=True))
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise ModelFetchError(f"the Hub names no commit of {repository}; is HF_ENDPOINT a Hub's address?")
    files = {}
    for entry in entries:
        if isinstance(entry, hub.hf_api.RepoFile):
            sha256 = entry.lfs.sha256 if entry.lfs is not None else None
            files[entry.path] = HubFile(entry.path, int(entry.size), sha256, entry.blob_id)
    return Listing(repository, commit, files)


def small_files(names: Iterable[str]) -> list[str]:
    """Of a repository in diffusers' layout: model_index.json, configs, tokenizers, scheduler. Nothing else is JSON."""
    return [name for name in names if _is_small(name)]


def weights_of(names: Iterable[str], prefix: str) -> list[str]:
    """The safetensors files directly below a prefix; of two precisions the half one, which renders the same in less."""
    here = [name for name in names if name.startswith(prefix) and "/" not in name[len(prefix) :]]

    def belongs(name: str, variant: str) -> bool:
        plain = _SHARD.sub("", name[len(prefix) :])
        return any(
            plain in (f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json") for stem in _STEMS
        )

    half = [name for name in here if belongs(name, ".fp16")]
    return half or [name for name in here if belongs(name, "")]


def safe_path(repository: str, name: str) -> PurePosixPath:
    """A file's name as a path that stays inside a folder. Raises ModelFetchError."""
    path = PurePosixPath(name)
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r'[\x00-\x1f\x7f\\:*?"<>|]', name):
        raise ModelFetchError(f"{repository} holds a file that is called {name!r}; no such name is written here")
    return path


def library() -> Any:
    """huggingface_hub, imported. Raises WorkerUnavailableError."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.hf_api
        import huggingface_hub.utils
    except ImportError as error:
        raise WorkerUnavailableError(
            "fetching a model needs huggingface_hub: pip install 'renderkiln[worker]'"
        ) from error
    return huggingface_hub


@contextmanager
def errors_as_ours(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turns what the Hub's library raises into `explain`'s errors."""
    try:
        yield
    except RenderkilnError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not is_network(error):
            raise  # the disk's, not the Hub's
        raise explain(repository, revision, error) from error


def is_network(error: BaseException) -> bool:
    """Whether an error is one of the network, not of what was asked."""
    # By name, since the library has changed the one that it stands on, and that one's errors have kept their names.
    return bool(_names(error) & {"TransportError", "ConnectionError", "TimeoutException", "OfflineModeIsEnabled"})


def explain(repository: str, revision: str | None, error: Exception) -> RenderkilnError:
    """What happened, as an error of ours, by the kind of the library's error."""
    hub = library()
    names = _names(error)
    what = f"{repository} could not be fetched from the Hugging Face Hub: "
    has_token = hub.get_token() is not None
    login = "log in with `hf auth login`, or set HF_TOKEN"
    page = f"{hub.constants.ENDPOINT}/{repository}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "GatedRepoError" in names:
        then = "" if has_token else f", then {login}"
        return ModelGatedError(f"{what}its owner wants you to agree to its terms first: do so on {page}{then}")
    if "RevisionNotFoundError" in names:
        return RevisionNotFoundError(f"{what}it has no revision {revision or 'main'!r}; {page} shows which it has")
    if status in (401, 403) and "RepositoryNotFoundError" not in names:
        return ModelAccessError(f"{what}the token is not valid, or may not read it; {login}")
    if "RepositoryNotFoundError" in names:
        private = "your token may not see it" if has_token else f"you are not logged in ({login})"
        return ModelNotFoundError(f"{what}there is no such repository, or it is private and {private}")
    if "HFValidationError" in names:
        return ModelNotFoundError(f"{what}that is no name of a repository; write OWNER/NAME")
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"} or is_network(error):
        why = "HF_HUB_OFFLINE is set" if hub.constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        cached = "it is not in this machine's cache, and " if "LocalEntryNotFoundError" in names else ""
        return HubUnavailableError(f"{what}{cached}{why}")
    if status is not None and status >= 500:
        return HubUnavailableError(f"{what}it answers with {status}; try again later")
    return ModelFetchError(what + (str(error).strip().splitlines() or [type(error).__name__])[0])


def _is_small(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if name == INDEX or (folder in COMPONENTS and file == "config.json"):
        return True
    if folder.split("-")[0] == _CONTROLNET and "/" not in folder and file == "config.json":
        return True
    return folder in SMALL_FOLDERS and file.endswith(SMALL_SUFFIXES)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}

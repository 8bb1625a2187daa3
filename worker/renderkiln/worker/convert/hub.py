"""Fetches from the Hugging Face Hub what a conversion needs and no more: small files, and one precision of the weights.

What is in the Hub's cache is used without a network; HF_HUB_OFFLINE is honoured.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import ModelNotFoundError, WorkerUnavailableError

#: Configs, tokenizers, schedulers.
_SMALL = ("*.json", "*/*.json", "*/*.txt")
_COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae", "safety_checker")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def fetch_model(repository: str, revision: str | None) -> tuple[Path, str | None]:
    """A model's snapshot folder and its commit. Raises ModelNotFoundError."""
    folder = _snapshot(repository, revision, _SMALL)
    present = _files(repository, revision)
    wanted = [name for component in _COMPONENTS for name in _weights_of(present, f"{component}/")]
    folder = _snapshot(repository, revision, [*_SMALL, *wanted])
    return folder, folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else revision


def fetch_small_files(repository: str) -> Path:
    """The folder of a model's configs and tokenizers, without its weights. Raises ModelNotFoundError."""
    try:
        return _snapshot(repository, None, _SMALL)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"a checkpoint file has no config, tokenizer or scheduler; they come from {repository}, which is not to be "
            f"had ({error}). Give a diffusers folder that has them with --config"
        ) from error


def fetch_component(repository: str, subfolder: str) -> Path:
    """The folder of one model, or of a pipeline that has it as a subfolder. Raises ModelNotFoundError."""
    present = _files(repository, None)
    prefix = f"{subfolder}/" if f"{subfolder}/config.json" in present else ""
    return _snapshot(repository, None, [f"{prefix}config.json", *_weights_of(present, prefix)])


def _weights_of(names: Iterable[str], prefix: str) -> list[str]:
    """The safetensors files directly below a prefix; of two precisions the half one, which is what gets written."""
    here = [name for name in names if name.startswith(prefix) and "/" not in name[len(prefix) :]]
    stems = ("model", "diffusion_pytorch_model")

    def belongs(name: str, variant: str) -> bool:
        plain = _SHARD.sub("", name[len(prefix) :])
        return any(
            plain in (f"{stem}{variant}.safetensors", f"{stem}.safetensors.index{variant}.json") for stem in stems
        )

    half = [name for name in here if belongs(name, ".fp16")]
    return half or [name for name in here if belongs(name, "")]


def _files(repository: str, revision: str | None) -> list[str]:
    hub = _library()
    if not hub.constants.HF_HUB_OFFLINE:
        try:
            return list(hub.HfApi().list_repo_files(repository, revision=revision))
        except Exception as error:
            if not _is_network(error):
                raise _not_found(repository, error) from error
    folder = _snapshot(repository, revision, ["*"])
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _snapshot(repository: str, revision: str | None, patterns: Iterable[str]) -> Path:
    hub = _library()
    offline = hub.constants.HF_HUB_OFFLINE
    try:
        return Path(
            hub.snapshot_download(
                repository, revision=revision, allow_patterns=list(patterns), local_files_only=bool(offline)
            )
        )
    except Exception as error:
        raise _not_found(repository, error) from error


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError as error:
        raise WorkerUnavailableError(
            "fetching a model needs huggingface_hub: pip install 'renderkiln[worker]'"
        ) from error
    return huggingface_hub


def _is_network(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"ConnectError", "ConnectionError", "ConnectTimeout", "OfflineModeIsEnabled", "TimeoutException"}
    )


def _not_found(repository: str, error: Exception) -> ModelNotFoundError:
    """What happened, by the kind of error: the library has moved them about, their names have stayed."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in names:
        what = "its owner wants you to agree to its terms first: do so on its page, then log in with `hf auth login`"
    elif "RepositoryNotFoundError" in names:
        what = "there is no such repository, or it is private and you are not logged in (`hf auth login`)"
    elif "RevisionNotFoundError" in names:
        what = "it has no such revision"
    elif names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"} or _is_network(error):
        what = "it is not in this machine's cache, and the Hub cannot be reached"
    else:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelNotFoundError(f"{repository} could not be fetched from the Hugging Face Hub: {what}")

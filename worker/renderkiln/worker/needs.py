"""What the worker's commands need beyond the base install."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from renderkiln.schema.errors import WorkerUnavailableError

RENDERING = ("torch", "diffusers", "transformers", "safetensors", "numpy")
_CONVERTING = ("diffusers", "numpy", "torch", "transformers")
#: For Core ML, and for anything; with the extras that they come with.
CONVERTING: Mapping[str, tuple[tuple[str, ...], str]] = {
    "coreml": (("coremltools", *_CONVERTING), "worker,coreml"),
    "torch": (_CONVERTING, "worker"),
}


def say_what_is_missing(who: str, libraries: tuple[str, ...], extras: str) -> None:
    """Raises WorkerUnavailableError if a library is not installed; imports none of them."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkerUnavailableError(
            f"{who} needs {', '.join(missing)}, which the base install leaves out: pip install 'renderkiln[{extras}]'"
        )

"""What the worker's commands need beyond the base install."""

from __future__ import annotations

import importlib.util

from renderkiln.schema.errors import WorkerUnavailableError

RENDERING = ("torch", "diffusers", "transformers", "safetensors", "numpy")
CONVERTING = ("coremltools", "diffusers", "numpy", "torch", "transformers")


def say_what_is_missing(who: str, libraries: tuple[str, ...], extras: str) -> None:
    """Raises WorkerUnavailableError if a library is not installed; imports none of them."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkerUnavailableError(
            f"{who} needs {', '.join(missing)}, which the base install leaves out: pip install 'renderkiln[{extras}]'"
        )

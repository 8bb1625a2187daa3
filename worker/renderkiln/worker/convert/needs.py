"""What the commands of this folder need beyond the base install."""

from __future__ import annotations

import importlib.util

from renderkiln.schema.errors import WorkerUnavailableError

_NEEDED = ("coremltools", "diffusers", "numpy", "torch", "transformers")


def say_what_is_missing(doing: str) -> None:
    """Raises WorkerUnavailableError if a library is not installed; imports none of them."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise WorkerUnavailableError(
            f"{doing} needs {', '.join(missing)}, which the base install leaves out: "
            "pip install 'renderkiln[worker,coreml]'"
        )

"""The demo model `shapes`: a tiny latent diffusion model that ships with the worker, and its judge.

Nothing heavy is imported here, so that asking for the path of the model costs nothing.
"""

from __future__ import annotations

from pathlib import Path


def shapes_path() -> Path:
    """The folder of the packaged model, in diffusers' layout."""
    return Path(__file__).resolve().parent / "shapes"

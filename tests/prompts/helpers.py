"""Writes lists for the tests and reads them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from renderkiln.producer.prompts import ListOptions, Request, ResolveImage, read, requests
from renderkiln.schema.errors import PromptListError

PICTURE = "sha256:" + "0" * 64


def no_images(path: str, folder: Path) -> str:
    raise AssertionError(f"no picture was asked for, but {path} in {folder} was looked up")


def asked(*sources: str | Path, resolve: ResolveImage = no_images, **options: Any) -> list[Request]:
    """All requests of some lists or prompts."""
    chosen = ListOptions(**options)
    return list(requests([read(str(source), chosen) for source in sources], resolve))


def texts(*sources: str | Path, **options: Any) -> list[str]:
    """Their prompts."""
    return [request.spec.prompt for request in asked(*sources, **options)]


def refused(*sources: str | Path, **options: Any) -> PromptListError:
    """The error that some lists end in."""
    with pytest.raises(PromptListError) as caught:
        asked(*sources, **options)
    return caught.value

"""Where pictures are to go, as jobs carry it to a worker that runs somewhere else."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from renderkiln.home.folder import absolute
from renderkiln.home.settings import mask_url
from renderkiln.schema.errors import InvalidSpecError, did_you_mean

_HERE = Path()


def store_for_jobs(place: Any, base: Path = _HERE) -> Any:
    """A folder's absolute path (relative ones begin at `base`); a URL as it is.

    What is no text, or empty, is given back for the schema to refuse.

    Raises:
        InvalidSpecError: no file system has the URL's protocol. Whether one is there, only its worker can tell.
        SettingsError: the path names the home of a user who does not exist, or holds a NUL.
    """
    if not isinstance(place, str) or not place:
        return place
    if "://" not in place and "::" not in place:
        return str(absolute(place if place.startswith("~") else base / place))
    _check_protocols(place)
    return place


@lru_cache(maxsize=16)
def _check_protocols(url: str) -> None:
    import fsspec  # only where somebody has a URL for a store

    known = fsspec.available_protocols()
    for part in url.split("::"):  # `simplecache::s3://bucket` and such chains
        protocol, found, _ = part.partition("://")
        if (found or "::" in url) and protocol not in known:
            raise InvalidSpecError(
                f"{mask_url(url)} is no store: no file system is called {protocol!r}.{did_you_mean(protocol, known)} "
                "Give a folder, a URL such as s3://bucket/pictures, or install the package that knows it."
            )

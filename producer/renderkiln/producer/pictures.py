"""Looking at rendered pictures from here: whether a file is still there, and its bytes."""

from __future__ import annotations

import socket

from renderkiln.home.store import Store
from renderkiln.schema.errors import StoreError
from renderkiln.schema.jobs import ImageResult, JobResult


def are_there(result: JobResult) -> bool:
    """Whether the pictures of a finished job can still be seen; a folder on another machine counts as there."""
    elsewhere = result.host != socket.gethostname()
    for image in result.images:
        if elsewhere and "://" not in image.url:
            continue
        try:
            if not _store_of(image).matches(image.url, size=image.size_bytes):
                return False
        except StoreError:
            return False
    return bool(result.images)


def read(image: ImageResult) -> bytes:
    """The bytes of a picture's file. Raises StoreError."""
    return _store_of(image).read(image.url)


def _store_of(image: ImageResult) -> Store:
    """A store that holds the picture: the folder it lies in, wherever the store that wrote it begins."""
    return Store(image.url.rpartition("/")[0])

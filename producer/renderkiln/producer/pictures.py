"""Looking at rendered pictures from here: whether a file is still there, and its bytes."""

from __future__ import annotations

import socket

from renderkiln.home.store import Store, named_store
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


def read(image: ImageResult, own: Store) -> bytes:
    """The bytes of a picture's file, in a store of one's own or in one that anybody may name. Raises StoreError."""
    if image.url.startswith(own.url.rstrip("/") + "/"):
        return own.read(image.url)
    return _store_of(image).read(image.url)


def _store_of(image: ImageResult) -> Store:
    """A store that holds the picture: the folder it lies in, wherever the store that wrote it begins."""
    return named_store(image.url.rpartition("/")[0])

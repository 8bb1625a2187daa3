"""Init images and masks on their way to a worker: checked here, named by their content, carried through Redis."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import redis

from renderkiln.home.folder import DataFolder
from renderkiln.home.pictures.inputs import InputImage, check_input_bytes, check_input_image
from renderkiln.home.store import Store
from renderkiln.schema import names
from renderkiln.schema.errors import ImageInputError

#: Fields of a spec that hold a picture.
IMAGE_FIELDS = ("init_image", "mask_image")
_PREFIX = "sha256:"


class InputCarrier:
    """Checks pictures and puts them where workers find them; each content once."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._by_path: dict[tuple[str, int, int], str] = {}
        #: What is still to be sent: bytes, or the file to read them from, so that a long list of pictures is
        #: checked without being held.
        self._pending: dict[str, bytes | Path] = {}
        self._known: set[str] = set()

    def add(self, picture: str | bytes | os.PathLike[str], base: Path | None = None) -> str:
        """The reference of a picture, given as a path (relative to `base`), as bytes, or as a reference already.

        Raises:
            ImageInputError: missing, too large, not a picture; or a reference whose picture is not here.
        """
        if isinstance(picture, bytes):
            return self._keep(check_input_bytes(picture, "init image"))
        if isinstance(picture, str) and picture.startswith(_PREFIX):
            return self._from_folder(picture)
        if not isinstance(picture, (str, os.PathLike)):
            raise ImageInputError(f"a picture is given as a path or as bytes, not as {type(picture).__name__}.")
        try:
            path = (base or Path()) / Path(picture).expanduser()
            found = path.stat()
            key = (str(path), found.st_mtime_ns, found.st_size)
        except RuntimeError as error:  # ~somebody who does not exist
            raise ImageInputError(f"{os.fspath(picture)!r} cannot be read: {error}") from None
        except (OSError, ValueError):
            key = None
        if key is not None and key in self._by_path:
            return self._by_path[key]
        reference = self._keep(check_input_image(path), path)
        if key is not None:
            self._by_path[key] = reference
        return reference

    def resolve(self, fields: MutableMapping[str, Any]) -> None:
        """Replaces pictures among a request's fields by their references."""
        for name in IMAGE_FIELDS:
            if fields.get(name) is not None:
                fields[name] = self.add(fields[name])

    def send(self, connection: redis.Redis) -> None:
        """Puts what was added into Redis, before the jobs that need it, and into the data folder, for `--like`.

        Raises:
            ImageInputError: a file is gone or was changed since it was added.
            SettingsError, StoreError: the data folder cannot be written.
        """
        for reference, source in self._pending.items():
            sha256 = reference.removeprefix(_PREFIX)
            data = source if isinstance(source, bytes) else _read_again(source, reference)
            connection.set(names.blob(sha256), data, ex=names.BLOB_TTL)
            kept = Store(self._folder.ensure().blobs)
            if not kept.matches(kept.url_of(sha256), size=len(data)):
                kept.put(sha256, data)
        self._pending.clear()

    def _keep(self, image: InputImage, path: Path | None = None) -> str:
        self._pending[image.ref] = image.data if path is None else path
        self._known.add(image.ref)
        return image.ref

    def _from_folder(self, reference: str) -> str:
        if reference in self._known:
            return reference
        path = self._folder.blobs / reference.removeprefix(_PREFIX)
        if "/" in reference or not path.is_file():
            raise ImageInputError(
                f"the picture {reference[:23]}… is not on this machine. "
                "Give it as a file with --init-image or --mask-image."
            )
        image = check_input_image(path)
        if image.ref != reference:
            raise ImageInputError(f"{path} does not hold the picture that it is named after; give the file again.")
        return self._keep(image, path)


def _read_again(path: Path, reference: str) -> bytes:
    image = check_input_image(path)
    if image.ref != reference:
        raise ImageInputError(f"{path} was changed while the list was being submitted; submit it again.")
    return image.data

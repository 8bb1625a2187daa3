"""Pictures that jobs start from, on their way to a worker: checked here, named by their content, carried through Redis.

These are init images, masks and what ControlNets follow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import redis
from PIL import Image

from renderkiln.home.folder import DataFolder
from renderkiln.home.pictures.inputs import InputImage, check_input_bytes, check_input_image, picture_bytes
from renderkiln.home.store import Store
from renderkiln.schema import names
from renderkiln.schema.errors import ImageInputError, InvalidSpecError
from renderkiln.schema.spec import MAX_CONTROLNETS, ControlNet

#: Fields of a spec that hold a picture, or several.
PICTURE_FIELDS = ("init_image", "mask_image", "controlnets")
_PREFIX = "sha256:"


def with_references(name: str, value: Any, refer: Callable[[Any], str]) -> Any:
    """The value of one of `PICTURE_FIELDS` with each picture in it replaced by what `refer` makes of it.

    What is no list of ControlNets with pictures is left for the schema to refuse.

    Raises:
        InvalidSpecError: more ControlNets than a spec may have; their pictures are not looked at.
    """
    if name != "controlnets":
        return None if value is None else refer(value)
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) > MAX_CONTROLNETS:
        raise InvalidSpecError(f"controlnets: at most {MAX_CONTROLNETS}, not {len(value):,}")
    nets = [each.model_dump() if isinstance(each, ControlNet) else each for each in value]
    return [
        {**each, "image": refer(each["image"])} if isinstance(each, Mapping) and "image" in each else each
        for each in nets
    ]


class InputCarrier:
    """Checks pictures and puts them where workers find them; each content once."""

    def __init__(self, folder: DataFolder) -> None:
        self._folder = folder
        self._by_path: dict[tuple[str, int, int], str] = {}
        #: What is still to be sent: bytes, or the file to read them from, so that a long list of pictures is
        #: checked without being held.
        self._pending: dict[str, bytes | Path] = {}
        self._known: set[str] = set()

    def add(self, picture: str | bytes | os.PathLike[str] | Image.Image, base: Path | None = None) -> str:
        """The reference of a picture.

        It is given as a path (relative to `base`), as the bytes of a file, as a PIL image, or as a reference already.

        Raises:
            ImageInputError: missing, too large, not a picture; or a reference whose picture is not here.
        """
        if isinstance(picture, Image.Image):
            picture = picture_bytes(picture)
        if isinstance(picture, bytes):
            return self._keep(check_input_bytes(picture, "the picture"))
        if isinstance(picture, str) and picture.startswith(_PREFIX):
            return self._from_folder(picture)
        if not isinstance(picture, (str, os.PathLike)):
            raise ImageInputError(
                f"a picture is given as a path, as bytes or as a PIL image, not as {type(picture).__name__}."
            )
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
        for name in PICTURE_FIELDS:
            if name in fields:
                fields[name] = with_references(name, fields[name], self.add)

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
                "Give it as a file: --init-image, --mask-image, --controlnet MODEL=FILE."
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

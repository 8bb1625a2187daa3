"""The store on disk: what a model may be called, how one gets in whole or not at all, how one is removed or verified.

`<data>/models/<name>` is a model; what is on its way lies in the hidden folder `<data>/models/.coming`, so that a model
that can be found is complete.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import installed_models
from renderkiln.home.origin import FILE_NAME as ORIGIN
from renderkiln.home.origin import Origin, read_origin
from renderkiln.schema.errors import (
    BadInputError,
    CorruptFileError,
    DiskFullError,
    ModelLoadError,
    ModelNotFoundError,
)

from ..runtimes import manifest as manifests
from .fetch import full_disk_as_ours, record_of
from .hub import COMPONENTS, INDEX
from .layout import variants
from .weights import find_weights, read_json

_COMING = ".coming"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
#: What verifying a model ends with where nothing says what its files should be.
NOTHING_KNOWN = "nothing is recorded of this folder's files; that they are complete was looked at, not their content"


def check_name(data: DataFolder, name: str) -> None:
    """Sees that a model may be called so. Raises BadInputError."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise BadInputError(f"{name!r} is no name for a model; write OWNER/NAME or one word: letters, digits, . _ -")
    above = PurePosixPath(name).parent
    if above.name and (data.models / above / INDEX).exists():
        raise BadInputError(f"{name}: {above} is a model already, and a model cannot lie within another")
    if "/" not in name and any((data.models / name).glob(f"*/{INDEX}")):
        raise BadInputError(f"{name} is the owner of other models; choose another --name")


@contextmanager
def coming(data: DataFolder, key: str) -> Iterator[Path]:
    """A hidden folder to put a model together in, held against others that want the same one.

    It stays when the block ends, whatever ends it; `publish` or `forget` takes it away.

    Raises:
        BadInputError: another process puts the same model together.
    """
    folder = data.ensure().models / _COMING / _key(key)
    with full_disk_as_ours(data.root):
        folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(handle):
            raise BadInputError(f"another renderkiln is getting the same model, into {folder}")
        yield folder
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether a process puts a model together in a folder right now."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_room(folder: Path, needed: int) -> int:
    """The bytes that are free on a folder's disk. Raises DiskFullError if they are fewer than needed."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskFullError(
            f"{needed / 1e6:,.1f} MB are needed and {free / 1e6:,.1f} MB are free on the disk of {folder}; make room "
            "(`renderkiln models list` shows what is large), or give another --data-dir"
        )
    return free


def publish(folder: Path, target: Path) -> None:
    """Gives a folder that is complete its place. `target` must not exist."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)


def write_origin(origin: Origin, folder: Path) -> None:
    """Writes the record of a model's origin, whole or not at all."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".origin-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(origin.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    Path(name).chmod(0o644)
    Path(name).replace(folder / ORIGIN)


def find_own(data: DataFolder, name: str) -> Path:
    """The folder of a model of the store; `ModelNotFoundError` also for the packaged one, which is not in it."""
    for model in installed_models(data):
        if model.name == name:
            if model.packaged:
                raise BadInputError(f"{name} comes with renderkiln and is no part of the store; it cannot be removed")
            return model.path
    raise ModelNotFoundError(f"model {name!r} is not on this machine; `renderkiln models list` shows what is")


def removable(data: DataFolder, name: str) -> list[Path]:
    """What removing a model would take away: its folder, and what was begun of it and not ended.

    Raises:
        ModelNotFoundError: there is neither.
        BadInputError: it is the packaged one, or is being fetched right now.
    """
    begun = coming_of(data, name)
    for folder in begun:
        if is_held(folder):
            raise BadInputError(f"another renderkiln is getting {name} right now, into {folder}; end that first")
    try:
        return [find_own(data, name), *begun]
    except BadInputError:
        if not begun:
            raise
        return begun


def remove(data: DataFolder, name: str) -> None:
    """Removes a model: at once for whoever looks, then its files. Of one that was added as a link, the link.

    Raises:
        BadInputError: see `removable`.
    """
    for path in removable(data, name):
        if path.is_symlink():
            path.unlink()
        else:
            (data.models / _COMING).mkdir(exist_ok=True)
            gone = Path(tempfile.mkdtemp(dir=data.models / _COMING, prefix=".removed-"))
            path.rename(gone / "model")
            shutil.rmtree(gone)
        if path.parent not in (data.models, data.models / _COMING) and not any(path.parent.iterdir()):
            path.parent.rmdir()


def forget(folder: Path) -> None:
    """Removes what was on its way."""
    shutil.rmtree(folder, ignore_errors=True)


def verify(folder: Path, on_file: Callable[[str], None]) -> list[str]:
    """Reads all files of a model whose digests are known.

    Args:
        on_file: is told the name of each file or package before it is read.

    Returns:
        What is not known and so could not be looked at.

    Raises:
        CorruptFileError: a file is missing or is not what it was.
        ModelLoadError: a manifest is not one of ours, or weights are not whole.
    """
    origin = read_origin(folder)
    known = dict(origin.files) if origin else {}
    wrong = []
    for name, record in known.items():
        on_file(name)
        path = folder / name
        if not path.is_file():
            wrong.append(f"{name} is missing")
        elif record_of(path) != record:
            wrong.append(f"{name} is not what it was: its size or its SHA-256 is another")
    found = variants(folder)
    for converted in found.values():
        for stage in manifests.read(converted).stages.values():
            for info in stage.packages:
                name = (converted / info.file).relative_to(folder).as_posix()
                if any(each.startswith(f"{name}/") for each in known):
                    continue  # looked at file by file
                on_file(name)
                complaint = manifests.compare(info, converted, digests=True)
                if complaint:
                    wrong.append(complaint)
    if wrong:
        raise CorruptFileError(f"{folder} is damaged: {'; '.join(wrong)}")
    check_complete(folder)
    return [] if known or found else [NOTHING_KNOWN]


def check_complete(folder: Path) -> None:
    """Sees that a model has all that rendering needs of it, by names and headers.

    Raises:
        ModelLoadError: something is missing or not whole.
    """
    index = read_json(folder / INDEX)
    there = variants(folder)
    for converted in there.values():
        manifests.load(converted)
    for component in COMPONENTS:
        entry = index.get(component)
        if not isinstance(entry, list) or not entry or entry[0] is None:
            continue
        if component == "safety_checker" and not (folder / component).is_dir():
            continue  # rendering does without
        read_json(folder / component / "config.json")
        if not there:
            find_weights(folder / component, half=True)
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise ModelLoadError(f"{folder} has no scheduler/scheduler_config.json: the model is not complete")


def coming_of(data: DataFolder, name: str) -> list[Path]:
    """The folders in which a model of that name was begun and not ended."""
    return [each for each in unfinished(data) if each.name.startswith(_key(f"{name}@"))]


def unfinished(data: DataFolder) -> list[Path]:
    """The folders of all models that were begun and not ended; some may be on their way right now."""
    folder = data.models / _COMING
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _key(text: str) -> str:
    # A sign that no model's name has, so that no two names come to the same.
    return text.replace("/", "+")

"""Takes a folder of this machine into the store: in Apple's layout, in diffusers', or one that `convert` wrote."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from renderkiln.home.folder import DataFolder
from renderkiln.home.origin import FileRecord, Origin, read_origin
from renderkiln.schema.errors import BadInputError, ModelNotFoundError, UnsupportedModelError

from ..runtimes import manifest as manifests
from ..runtimes.coreai.bundle import TYPES as BUNDLE_TYPES
from ..runtimes.coreai.bundle import read_bundle
from .adopt import adopt, check_specs, say_what_reading_needs
from .apple import ASSET, PACKAGE, variant_of
from .fetch import fetch, full_disk_as_ours, record_of
from .hub import COMPONENTS, INDEX, REPOSITORY, list_files, small_files, weights_of
from .layout import VARIANTS, Variant, variants
from .picking import Form, choose_files, find_parts
from .pull import wanted_small
from .store import check_complete, check_name, check_room, coming, forget, publish, write_origin

#: What a folder is called that says nothing of the model in it.
_NO_NAMES = ("packages", "compiled", "resources", "out")


@dataclass(frozen=True)
class Addition:
    """What was asked for."""

    path: Path
    #: In the store; the folder's unless told.
    name: str | None = None
    #: Point to the folder instead of copying it.
    link: bool = False
    #: Of a folder in Apple's layout: take this one; or, where the folder does not say which it is, that it is this one.
    variant: Variant | None = None
    #: A diffusers folder or a repository, whose small files go with a folder in Apple's layout that has none.
    original: str | None = None


def add(wish: Addition, data: DataFolder) -> Path:
    """Puts a folder into the store, whole or not at all; returns the model's folder.

    Raises:
        BadInputError: there is no such folder, it is no model, or the name is taken.
        ModelLoadError: the model is damaged or not complete.
        DiskFullError: there is no room for a copy.
        WorkerUnavailableError: a library is missing.
    """
    path = wish.path.expanduser().resolve()
    if not path.is_dir():
        raise ModelNotFoundError(f"{wish.path} is no folder; give one in Apple's, renderkiln's or diffusers' layout")
    name = wish.name or path.name
    if wish.name is None and (variant_of(name) or name.casefold() in _NO_NAMES):
        raise BadInputError(f"{path.name} says nothing of the model in it; give it a --name")
    check_name(data, name)
    target = data.models / name
    if target.exists() or target.is_symlink():
        raise BadInputError(f"{name} is here already; give another --name, or `renderkiln models rm {name}` first")
    if path.is_relative_to(data.models.resolve()):
        raise BadInputError(f"{path} lies in the store already")
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    say_what_reading_needs(names)
    is_ours = any(f"{folder}{manifests.FILE_NAME}" in names for folder in ("", *(f"{each}/" for each in VARIANTS)))
    if not is_ours and find_parts(names):
        return _add_apples(_with_original(wish, path, names), path, names, name, data)
    return _add_whole(wish, path, names, name, data)


def _with_original(wish: Addition, path: Path, names: list[str]) -> Addition:
    """Of a bundle of Core AI assets without configs the model that it says it was made of."""
    bundle = read_bundle(path)
    if bundle is None:
        return wish
    if bundle.type not in BUNDLE_TYPES.values():
        raise UnsupportedModelError(
            f"{path} is a bundle of a {bundle.type} model; known are {', '.join(BUNDLE_TYPES.values())}"
        )
    return wish if wish.original or INDEX in names else replace(wish, original=bundle.original)


def _add_whole(wish: Addition, path: Path, names: list[str], name: str, data: DataFolder) -> Path:
    """A folder that is laid out as the store's are."""
    if INDEX not in names:
        raise BadInputError(
            f"{path} is no model: it has no {INDEX}, and no converted models that are named as Apple's are"
        )
    if wish.variant is not None:
        raise BadInputError(f"--variant {wish.variant}: {path} is taken in as it is; leave it out")
    check_complete(path)
    for converted in variants(path).values():
        check_specs(converted, path)
    target = data.ensure().models / name
    if wish.link:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path, target_is_directory=True)
        return target
    packages = [
        f"{(folder / info.file).relative_to(path).as_posix()}/"
        for folder in variants(path).values()
        for stage in manifests.read(folder).stages.values()
        for info in stage.packages
    ]
    wanted = [
        *small_files(names),
        *(each for component in COMPONENTS for each in weights_of(names, f"{component}/")),
        *(each for each in names if each.rpartition("/")[2] in manifests.COMPANIONS and each.count("/") < 2),
        *(each for each in names if each.startswith(tuple(packages))),
    ]
    origin = read_origin(path) or Origin()
    with _begun(data, name) as folder, full_disk_as_ours(folder):
        files = _copy(path, {each: PurePosixPath(each) for each in dict.fromkeys(wanted)}, folder)
        check_complete(folder)
        write_origin(origin.model_copy(update={"files": files}), folder)
        publish(folder, target)
    return target


def _add_apples(wish: Addition, path: Path, names: list[str], name: str, data: DataFolder) -> Path:
    """A folder in Apple's layout, of which each variant is described and gets a folder."""
    above = next((found for found in map(variant_of, (path.name, path.parent.name)) if found), None)
    says = {found.variant for found in find_parts(names).values()} - {None}
    the_one = None if says else above or wish.variant
    if not says and the_one is None:
        raise BadInputError(f"{path} does not say which attention its models have; say --variant {', '.join(VARIANTS)}")
    form: Form = "packages" if any(f"{each}/" in name for each in (PACKAGE, ASSET) for name in names) else "compiled"
    prefix = f"{the_one}/" if the_one else ""
    prefixed = [f"{prefix}{each}" for each in names]
    first = choose_files(str(path), prefixed, wish.variant, form, "original")
    chosen = (first.variant,) if wish.variant else first.there
    target = data.ensure().models / name
    with _begun(data, name) as folder, full_disk_as_ours(folder):
        files = _put_small_files(wish, path, names, folder)
        for variant in chosen:
            choice = choose_files(str(path), prefixed, variant, form, "original")
            wanted = {each.removeprefix(prefix): to for each, to in choice.files.items()}
            if wish.link:
                _link(path, wanted, folder)
            else:
                files |= _copy(path, wanted, folder)
            if variant is not None:
                adopt(folder / variant, folder, model=name, revision=None, variant=variant)
        check_complete(folder)
        write_origin(Origin(files=files, original=wish.original), folder)
        publish(folder, target)
    return target


@contextmanager
def _begun(data: DataFolder, name: str) -> Iterator[Path]:
    """A hidden folder to put the model together in; nothing is left of it if that fails."""
    with coming(data, f"{name}@added") as folder:
        for left in folder.iterdir():  # by one that was killed
            left.unlink() if left.is_file() else shutil.rmtree(left)
        try:
            yield folder
        except BaseException:
            forget(folder)
            raise


def _put_small_files(wish: Addition, path: Path, names: list[str], folder: Path) -> dict[str, FileRecord]:
    """The small files: the folder's own, or those of the original, which is a folder or a repository."""
    if wish.original is None:
        if INDEX not in names:
            raise BadInputError(
                f"{path} holds converted models without tokenizer, scheduler and configs; say with --original which "
                "model they were made of: a folder in diffusers' layout, or OWNER/NAME on the Hub"
            )
        return _copy(path, {each: PurePosixPath(each) for each in small_files(names)}, folder)
    local = Path(wish.original).expanduser()
    if (local / INDEX).is_file():
        own = [file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file()]
        return _copy(local, {each: PurePosixPath(each) for each in small_files(own)}, folder)
    if local.exists() or not REPOSITORY.fullmatch(wish.original):
        raise BadInputError(f"--original {wish.original} is no folder in diffusers' layout, and no OWNER/NAME")
    return fetch(wanted_small(list_files(wish.original, None)), folder, lambda _: None)


def _copy(path: Path, files: Mapping[str, PurePosixPath], folder: Path) -> dict[str, FileRecord]:
    check_room(folder, sum((path / each).stat().st_size for each in files))
    records = {}
    for each, to in files.items():
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / each, folder / to)  # through links: the Hub's cache is made of them
        records[to.as_posix()] = record_of(folder / to)
    return records


def _link(path: Path, files: Mapping[str, PurePosixPath], folder: Path) -> None:
    """Links the packages that files lie in."""
    for each, to in files.items():
        link = folder / PurePosixPath(*to.parts[:2])
        inside = PurePosixPath(*to.parts[2:])
        package = path / PurePosixPath(*PurePosixPath(each).parts[: -len(inside.parts)])
        if not link.is_symlink():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(package, target_is_directory=True)

"""Which files of a repository are wanted, and where they go in the model's folder. Pure: works on names alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from renderkiln.schema.errors import BadInputError, UnsupportedModelError

from ..runtimes.manifest import COMPANIONS
from ..runtimes.manifest import FILE_NAME as MANIFEST
from .apple import ASSET, COMPILED, PACKAGE, Part, file_name, part_of, variant_of
from .hub import COMPONENTS, INDEX, safe_path, small_files, weights_of
from .layout import COREAI, VARIANTS, Variant

Form = Literal["packages", "compiled"]
#: What a repository is: one in Apple's layout, one that `renderkiln convert` wrote, or one in diffusers' layout.
Kind = Literal["apple", "converted", "diffusers"]
_SUFFIXES: Mapping[Form, tuple[str, ...]] = {"packages": (PACKAGE, ASSET), "compiled": (COMPILED,)}
#: What does instead of a variant, best first.
_INSTEAD: Mapping[Variant, tuple[Variant, ...]] = {
    "original": ("original", "split-einsum", "split-einsum-v2", "coreai"),
    "split-einsum": ("split-einsum", "split-einsum-v2", "original", "coreai"),
    "split-einsum-v2": ("split-einsum-v2", "split-einsum", "original", "coreai"),
    "coreai": ("coreai", "original", "split-einsum", "split-einsum-v2"),
}


@dataclass(frozen=True)
class Choice:
    """What is wanted of a repository."""

    kind: Kind
    #: None where the repository has no variants, or does not say which one it is.
    variant: Variant | None
    #: Where each file goes in the model's folder, by its name in the repository.
    files: Mapping[str, PurePosixPath]
    #: All variants that the repository has in this form.
    there: tuple[Variant, ...] = ()


@dataclass(frozen=True)
class Found:
    """A package somewhere below a folder, in Apple's layout."""

    #: The folder that it lies in, and its own name.
    folder: PurePosixPath
    name: str
    part: Part

    @property
    def is_in_controlnet_folder(self) -> bool:
        return self.folder.name == "controlnet"

    @property
    def variant(self) -> Variant | None:
        """What the folders above it are called; of Core AI there is one."""
        if self.name.endswith(ASSET):
            return COREAI
        return next((found for found in map(variant_of, reversed(self.folder.parts)) if found), None)


def choose_files(repository: str, names: Collection[str], wish: Variant | None, form: Form, best: Variant) -> Choice:
    """What to fetch.

    Args:
        names: all that the repository holds.
        wish: the variant that was asked for.
        form: packages, or compiled models; of repositories in Apple's layout.
        best: the variant that suits the machine; another one is taken where the repository does not have it.

    Raises:
        BadInputError: it does not have what was asked for.
        UnsupportedModelError: it holds nothing that can be rendered with.
        ModelFetchError: a file's name could lead outside of a folder.
    """
    folders: dict[Variant, str] = {each: f"{each}/" for each in VARIANTS if f"{each}/{MANIFEST}" in names}
    if MANIFEST in names:
        return _converted(repository, names, None, {})
    if folders:
        return _converted(repository, names, _pick(repository, folders, wish, best), folders)
    found = find_parts(names)
    if found:
        return _apple(repository, names, found, wish, form, best)
    if wish is not None:
        raise BadInputError(f"--variant {wish}: {repository} holds no converted models, so it has no variants")
    return _diffusers(repository, names)


def find_parts(names: Iterable[str]) -> dict[PurePosixPath, Found]:
    """The packages that files lie in, by the packages' paths; what rendering does not use is left out."""
    found: dict[PurePosixPath, Found] = {}
    for name in names:
        path = PurePosixPath(name)
        for package in path.parents:
            part = part_of(package.name, in_controlnet_folder=package.parent.name == "controlnet")
            if part is not None:
                found[package] = Found(package.parent, package.name, part)
    return found


def without_spare_chunks(found: Mapping[PurePosixPath, Found]) -> dict[PurePosixPath, Found]:
    """Leaves out the chunks of stages that are there whole, too: a Mac loads one model faster than two."""
    whole = {each.part.stage for each in found.values() if each.part.chunk == 0}
    return {path: each for path, each in found.items() if each.part.chunk == 0 or each.part.stage not in whole}


def _apple(
    repository: str,
    names: Collection[str],
    found: Mapping[PurePosixPath, Found],
    wish: Variant | None,
    form: Form,
    best: Variant,
) -> Choice:
    found = {path: each for path, each in found.items() if path.suffix in _SUFFIXES[form]}
    if not found:
        other = "compiled" if form == "packages" else "packages"
        raise BadInputError(f"--format {form}: {repository} has {other} only; say --format {other}")
    # A repository without folders for variants holds models as they were: that of Stable Diffusion XL.
    there = {each.variant or "original" for each in found.values()}
    variant = _pick(repository, there, wish, best)
    wanted = without_spare_chunks(
        {path: each for path, each in found.items() if (each.variant or "original") == variant}
    )
    files = {}
    for name in names:
        for package in PurePosixPath(name).parents:
            if package in wanted:
                each = wanted[package]
                own = file_name(each.name, in_controlnet_folder=each.is_in_controlnet_folder)
                inside = safe_path(repository, name).relative_to(package)
                files[name] = PurePosixPath(variant) / own / inside
    return Choice("apple", variant, files, _ordered(there))


def _converted(
    repository: str, names: Collection[str], variant: Variant | None, there: Mapping[Variant, str]
) -> Choice:
    prefix = there[variant] if variant else ""
    own = [name for name in names if name.startswith(prefix)]
    packages = [name for name in own if part_of(name[len(prefix) :].partition("/")[0]) and "/" in name[len(prefix) :]]
    beside = [f"{prefix}{each}" for each in COMPANIONS if f"{prefix}{each}" in names]
    wanted = [*beside, *packages, *small_files(names)]
    return Choice("converted", variant, _as_they_are(repository, wanted), _ordered(there))


def _diffusers(repository: str, names: Collection[str]) -> Choice:
    weights = [name for component in COMPONENTS for name in weights_of(names, f"{component}/")]
    if INDEX not in names:
        what = "is no model in diffusers' layout, nor one in Apple's, nor one that `renderkiln convert` wrote"
        raise UnsupportedModelError(f"{repository} {what}: it has no {INDEX}")
    if not any(name.startswith("unet/") for name in weights):
        raise UnsupportedModelError(
            f"{repository} has no safetensors for its unet: it is no Stable Diffusion 1, 2 or XL, or holds pickles "
            "alone, which can run any code when they are read and are never fetched"
        )
    return Choice("diffusers", None, _as_they_are(repository, [*small_files(names), *weights]))


def _as_they_are(repository: str, names: Iterable[str]) -> dict[str, PurePosixPath]:
    return {name: safe_path(repository, name) for name in names}


def _pick(repository: str, there: Collection[Variant], wish: Variant | None, best: Variant) -> Variant:
    if wish is None:
        return next(each for each in _INSTEAD[best] if each in there)
    if wish not in there:
        raise BadInputError(f"--variant {wish}: {repository} does not have it; it has {', '.join(_ordered(there))}")
    return wish


def _ordered(there: Collection[Variant]) -> tuple[Variant, ...]:
    return tuple(each for each in VARIANTS if each in there)

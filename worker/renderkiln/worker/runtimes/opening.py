"""Opens the packages of one stage on the runtime that this machine has, and holds them to what the manifest says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from renderkiln.home.folder import DataFolder
from renderkiln.schema.errors import ModelLoadError

from .base import ComputeUnit, Runtime, TensorInfo
from .chain import Chain
from .manifest import PackageInfo, StageInfo


class OpenPackage(Protocol):
    """Loads one package. Raises ModelLoadError or OutOfMemoryError."""

    def __call__(self, path: Path, info: PackageInfo) -> Runtime: ...


def open_stage(folder: Path, stage: StageInfo, open_package: OpenPackage) -> Runtime:
    """One stage, loaded: its package, or its chunks as one.

    Raises:
        ModelLoadError: a package is missing or damaged, or is not what the manifest says.
        OutOfMemoryError: there is no room.
    """
    runtimes = []
    for info in stage.packages:
        runtime = open_package(folder / info.file, info)
        for what, said, found in (("input", info.inputs, runtime.inputs), ("output", info.outputs, runtime.outputs)):
            complaint = _difference({each.name: each for each in said}, found, what)
            if complaint:
                raise ModelLoadError(f"{folder / info.file} is not what its manifest says: {complaint}")
        runtimes.append(runtime)
    return runtimes[0] if len(runtimes) == 1 else Chain(runtimes)


def package_opener(unit: ComputeUnit, data: DataFolder) -> OpenPackage:
    """What loads packages for a compute unit. `data`: the folder that compiled packages are kept in."""
    if unit == "reference":
        return _reference_package
    from .apple.cache import FOLDER, CompileCache
    from .apple.runtime import AppleRuntime

    cache = CompileCache(data.root / FOLDER)

    def on_core_ml(path: Path, info: PackageInfo) -> Runtime:
        return AppleRuntime.load(path, info, compute_unit=unit, cache=cache)

    return on_core_ml


def _reference_package(path: Path, info: PackageInfo) -> Runtime:
    """Loads a package on the reference runtime."""
    from .reference import ReferenceRuntime

    if path.suffix == ".mlmodelc":
        raise ModelLoadError(
            f"{path} is compiled for macOS and can only be run there; elsewhere renderkiln runs .mlpackage folders"
        )
    return ReferenceRuntime.load(path)


def _difference(said: Mapping[str, TensorInfo], found: Mapping[str, TensorInfo], what: str) -> str | None:
    """What is not so of what was said of inputs or outputs, or None."""
    if set(said) != set(found):
        return f"its {what}s are {', '.join(sorted(found))}, not {', '.join(sorted(said))}"
    for name, info in said.items():
        if info.dtype != found[name].dtype:
            return f"its {what} {name} is {found[name].dtype}, not {info.dtype}"
        if info.shapes and found[name].shapes and set(info.shapes) != set(found[name].shapes):
            shapes = " or ".join(map(str, found[name].shapes))
            return f"its {what} {name} is {shapes}, not {' or '.join(map(str, info.shapes))}"
    return None

"""Opens the packages of one stage on the runtime that this machine has, and holds them to what the manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from renderkiln.home.folder import DataFolder
from renderkiln.schema.errors import ModelLoadError

from .apple.system import ComputeUnit as AppleUnit
from .base import ComputeUnit, Runtime
from .chain import Chain
from .coreai.asset import SUFFIX as ASSET_SUFFIX
from .manifest import PackageInfo, StageInfo, compare_interface


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
        compare_interface(folder / info.file, info, runtime.inputs.values(), runtime.outputs.values())
        runtimes.append(runtime)
    return runtimes[0] if len(runtimes) == 1 else Chain(runtimes)


def package_opener(unit: ComputeUnit, data: DataFolder) -> OpenPackage:
    """What loads packages for a compute unit. `data`: the folder that compiled packages are kept in."""

    def open_package(path: Path, info: PackageInfo) -> Runtime:
        if path.suffix == ASSET_SUFFIX:
            from .coreai.runtime import CoreAIRuntime

            return CoreAIRuntime.load(path, compute_unit=unit, functions=info.functions)
        return core_ml(path, info)

    core_ml = _reference_package if unit == "reference" else _on_core_ml(unit, data)
    return open_package


def _on_core_ml(unit: AppleUnit, data: DataFolder) -> OpenPackage:
    from .apple.cache import FOLDER, CompileCache
    from .apple.runtime import AppleRuntime

    cache = CompileCache(data.root / FOLDER)

    def open_package(path: Path, info: PackageInfo) -> Runtime:
        return AppleRuntime.load(path, info, compute_unit=unit, cache=cache)

    return open_package


def _reference_package(path: Path, info: PackageInfo) -> Runtime:
    """Loads a package on the reference runtime."""
    from .reference import ReferenceRuntime

    if path.suffix == ".mlmodelc":
        raise ModelLoadError(
            f"{path} is compiled for macOS and can only be run there; elsewhere renderkiln runs .mlpackage folders"
        )
    return ReferenceRuntime.load(path)

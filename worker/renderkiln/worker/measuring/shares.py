"""On which device Core ML means to compute each stage of a model, so that a silent fall-back to the CPU shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from renderkiln.home.folder import DataFolder
from renderkiln.home.models import find_model
from renderkiln.schema.errors import ModelLoadError, RenderkilnError

from ..models.layout import variants
from ..runtimes import manifest
from ..runtimes.apple.cache import FOLDER, CompileCache, Key
from ..runtimes.apple.plan import shares_of
from ..runtimes.apple.system import COMPUTE_UNITS, on_macos
from ..runtimes.manifest import PackageInfo
from .records import Order, StageShares

if TYPE_CHECKING:
    from ..runtimes.apple.system import ComputeUnit


def shares_of_form(order: Order, data: DataFolder) -> tuple[Mapping[str, StageShares], str]:
    """The shares of each stage that is compiled here, and why there are none (where that is worth a word).

    Never raises for what Core ML does not tell: pictures were rendered, and that is what counts.
    """
    if not on_macos() or order.candidate.engine != "coreml" or order.candidate.unit not in COMPUTE_UNITS:
        return {}, ""
    unit, cache = order.candidate.unit, CompileCache(data.root / FOLDER)
    found = {}
    try:
        folder = variants(find_model(data, order.model))[order.candidate.variant]
        for stage in manifest.read(folder).stages.values():
            for number, info in enumerate(stage.packages, start=1):
                name = stage.stage if len(stage.packages) == 1 else f"{stage.stage} {number}"
                shares = shares_of(_compiled(folder / info.file, info, unit, cache), unit)
                found[name] = StageShares(shares.devices, shares.on_cpu)
    except RenderkilnError as error:
        return found, str(error)
    return found, ""


def _compiled(path: Path, info: PackageInfo, unit: ComputeUnit, cache: CompileCache) -> Path:
    if path.suffix == ".mlmodelc":
        return path

    def refuse(_target: Path) -> None:
        raise ModelLoadError(f"{path.name} is not compiled for {unit}")

    lease = cache.lease(Key(info.sha256, unit, str(path)), refuse)
    lease.release()  # the runtime that rendered has it, too, so that it stays
    return lease.path

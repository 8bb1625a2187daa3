"""The worker's part of `renderkiln doctor`: what can be rendered here, in which form, and what Core ML has compiled.

Joins in through the entry-point group `renderkiln.checkups`. Models are looked at by names, sizes and headers; none is
loaded, and no library that loads one is imported.
"""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from renderkiln.home.checkup import Checkup, Finding, ok, problem, size, warning
from renderkiln.home.folder import DataFolder
from renderkiln.home.models import InstalledModel, installed_models
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import ModelLoadError, RenderkilnError

from .needs import RENDERING

if TYPE_CHECKING:
    from .models.choosing import Choice, Form
    from .runtimes.apple.policy import Entry

#: Seconds to wait for a ledger that somebody writes to.
_BUSY = 2.0


def check_rendering(settings: Settings) -> list[Finding]:
    """Whether models can be rendered here, each of them, and in which form."""
    missing = [name for name in (*RENDERING, "coremltools") if importlib.util.find_spec(name) is None]
    lacking = [name for name in missing if name in RENDERING]
    if lacking:
        return [judge_base_install(lacking)]
    data = DataFolder(settings.data_dir)
    tuned = _tuned(data.ledger)
    can_convert = "coremltools" not in missing
    findings = [_check_model(model, settings, tuned.get(model.name), can_convert) for model in installed_models(data)]
    return [_check_coreai(), *findings, *_check_downloads(data)]


def check_compiled(settings: Settings) -> list[Finding]:
    """What Core ML compiled of the models, and is kept."""
    from .runtimes.apple.cache import FOLDER, MAX_BYTES, CompileCache

    cache = CompileCache(DataFolder(settings.data_dir).root / FOLDER)
    entries = cache.entries()
    if not entries and sys.platform != "darwin":
        return []
    return [judge_compiled(entries, cache.build, MAX_BYTES)]


def judge_base_install(missing: Sequence[str]) -> Finding:
    """What a machine without all that renders is: most likely one that only asks."""
    says = f"nothing is rendered on this machine: {', '.join(missing)} are not installed"
    if len(missing) == len(RENDERING):
        return ok("rendering", says, missing=list(missing))
    return warning("rendering", says, "pip install 'renderkiln[worker]'", missing=list(missing))


def judge_compiled(entries: Sequence[Entry], build: str, limit: int) -> Finding:
    """Whether the compile cache holds what is of no use.

    Args:
        build: of the system.
        limit: bytes that are kept.
    """
    total = sum(entry.size_bytes for entry in entries)
    useless = [entry for entry in entries if entry.damaged or entry.build != build]
    says = f"{size(total)} in {len(entries)} compiled models, of {size(limit)} that are kept"
    facts = {"size_bytes": total, "entries": len(entries), "useless": len(useless)}
    if useless:
        wasted = size(sum(entry.size_bytes for entry in useless))
        says = f"{says}; {len(useless)} ({wasted}) are damaged or of another macOS"
        return warning("compiled models", says, "renderkiln models cache clean", **facts)
    return ok("compiled models", says, **facts)


def judge_form(model: InstalledModel, choice: Choice, kinds: Iterable[str], *, has_coremltools: bool) -> Finding:
    """How a model that is whole is rendered here, and why that way.

    Args:
        choice: the form, None for torch, and the reason.
        kinds: how the files of the form's packages end.
    """
    about, form = f"model {model.name}", choice.form
    what = f"{model.pipeline}, {size(model.size_bytes)}"
    facts = {"path": str(model.path), "pipeline": model.pipeline, "size_bytes": model.size_bytes, "why": choice.why}
    if form is None:
        return ok(about, f"{what}: rendered by torch, {choice.why}", **facts, engine="torch")
    facts |= {"engine": form.engine, "variant": form.variant, "compute_unit": form.unit}
    if form.engine == "coreai":
        where = "by Core AI's interpreter, slowly" if form.unit == "reference" else f"by Core AI on {form.unit}"
        return ok(about, f"{what}: rendered {where}, {choice.why}", **facts)
    if not has_coremltools:
        says = "is converted to Core ML, and coremltools is not installed"
        return warning(about, says, "pip install 'renderkiln[worker,coreml]'", **facts)
    if form.unit == "reference" and ".mlmodelc" in kinds:
        do = f"renderkiln models rm {model.name}, then `renderkiln models pull` it with --format packages"
        return warning(about, "is compiled for macOS, and cannot be rendered elsewhere", do, **facts)
    where = "on the reference runtime" if form.unit == "reference" else f"by Core ML on {form.unit}"
    return ok(about, f"{what}: {form.variant}, rendered {where}, {choice.why}", **facts)


def judge_coreai(lacking: str | None, *, on_all_units: bool) -> Finding:
    """Whether Core AI runs models here, and on what.

    Args:
        lacking: why it does not, as the end of a sentence.
    """
    if lacking is not None:
        return ok("Core AI", f"{lacking}; Core ML and torch need none of it", usable=False, on_all_units=False)
    says = "on all units" if on_all_units else "its interpreter alone, which is slow; the units come with macOS 27"
    return ok("Core AI", says, usable=True, on_all_units=on_all_units)


def _check_model(
    model: InstalledModel, settings: Settings, tuned: tuple[str, str] | None, has_coremltools: bool
) -> Finding:
    from .convert.source import FAMILIES
    from .models.choosing import Wishes, choose
    from .models.store import check_complete
    from .runtimes import manifest
    from .runtimes.apple.system import why_no_text_encoder
    from .runtimes.naming import PROJECTION

    about, facts = f"model {model.name}", {"path": str(model.path)}
    again = f"renderkiln models verify {model.name}; then pull, convert or add it again"
    try:
        check_complete(model.path)
        if model.pipeline not in FAMILIES:
            do = f"renderkiln models rm {model.name}; Stable Diffusion 1, 2 and XL can be rendered"
            return warning(about, f"is a {model.pipeline}, which renderkiln cannot run", do, **facts)
    except ModelLoadError as error:
        return problem(about, f"is damaged or not complete: {error}", again, **facts)
    try:
        choice = choose(model.path, Wishes(settings.engine, settings.compute_unit, settings.variant), tuned)
        if choice.form is None:
            _check_weights(model.path)
            return judge_form(model, choice, (), has_coremltools=has_coremltools)
        stages = manifest.read(choice.form.folder).stages
        _check_stages(model.path, choice.form)
    except RenderkilnError as error:
        return warning(
            about, f"cannot be rendered here: {error}", "renderkiln config shows what was asked for", **facts
        )
    lacking = why_no_text_encoder() if PROJECTION in stages else None
    if lacking:
        do = "render it on another machine of the fleet"
        return warning(about, f"is made for macOS's text encoder, which {lacking}", do, **facts)
    kinds = {Path(package.file).suffix for stage in stages.values() for package in stage.packages}
    return judge_form(model, choice, kinds, has_coremltools=has_coremltools)


def _check_coreai() -> Finding:
    from .runtimes.coreai.system import on_all_units, why_not

    return judge_coreai(why_not(), on_all_units=on_all_units())


def _check_weights(folder: Path) -> None:
    from .models.weights import find_weights

    for component in ("text_encoder", "unet", "vae"):
        find_weights(folder / component, half=True)


def _check_stages(folder: Path, form: Form) -> None:
    from .engine.converted.interface import check_manifest
    from .models.weights import read_json
    from .runtimes import manifest

    vae = read_json(folder / "vae" / "config.json")
    check_manifest(manifest.read(form.folder), 2 ** (len(vae.get("block_out_channels", [0])) - 1))


def _check_downloads(data: DataFolder) -> list[Finding]:
    from .models.store import unfinished

    begun = unfinished(data)
    if not begun:
        return []
    total = sum(file.stat().st_size for folder in begun for file in folder.rglob("*") if file.is_file())
    says = f"{len(begun)} begun and not ended, {size(total)} in {begun[0].parent}"
    do = "run the same `renderkiln models pull` again, or remove that folder where none is going on"
    return [warning("downloads", says, do, folders=[str(folder) for folder in begun], size_bytes=total)]


def _tuned(ledger: Path) -> Mapping[str, tuple[str, str]]:
    """What was measured to be best, by model. Opening the ledger as workers do would migrate it."""
    if not ledger.exists():
        return {}
    try:
        connection = sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True, timeout=_BUSY)
        try:
            rows = connection.execute("select model, variant, compute_unit from tunings").fetchall()
        finally:
            connection.close()
    except sqlite3.Error:  # another finding's matter; a ledger of an earlier version has no such table
        return {}
    return {model: (variant, unit) for model, variant, unit in rows}


#: The entry point.
CHECKUPS: Mapping[str, Checkup] = {"rendering": check_rendering, "compiled models": check_compiled}

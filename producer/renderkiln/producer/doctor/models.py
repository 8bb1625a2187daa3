"""The models, as far as any machine can tell: which are here, and whether the default one is. Workers know more."""

from __future__ import annotations

from collections.abc import Sequence

from renderkiln.home.checkup import Finding, ok, size, warning
from renderkiln.home.folder import DataFolder
from renderkiln.home.models import InstalledModel, installed_models
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import did_you_mean


def check_models(settings: Settings) -> list[Finding]:
    """The models of this machine."""
    data = DataFolder(settings.data_dir)
    return [judge_models(installed_models(data), settings.model, str(data.models))]


def judge_models(models: Sequence[InstalledModel], default: str, where: str) -> Finding:
    """Whether there is something to render with, and the default model among it."""
    names = [model.name for model in models]
    total = sum(model.size_bytes for model in models)
    facts = {"path": where, "models": names, "size_bytes": total, "default": default}
    if default not in names:
        says = f"the default model, {default}, is not on this machine.{did_you_mean(default, names)}"
        do = f"renderkiln models pull {default}, or set RENDERKILN_MODEL to one of: {', '.join(names) or 'none yet'}"
        return warning("models", says, do, **facts)
    return ok("models", f"{', '.join(names)}: {size(total)}, below {where}", **facts)

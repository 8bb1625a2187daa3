"""The disks: how much is free where the data folder is, and where pictures go."""

from __future__ import annotations

import shutil
from pathlib import Path

from renderkiln.home.checkup import Finding, ok, problem, size, warning
from renderkiln.home.folder import DataFolder
from renderkiln.home.settings import Settings
from renderkiln.home.store import Store

from .folder import look_at

#: Bytes. Below the first, a ledger or a server's file may be torn; below the second, no model can be fetched.
_NOTHING_LEFT, _LITTLE_LEFT = 0.5e9, 10e9


def check_disks(settings: Settings) -> list[Finding]:
    """The disk of the data folder, and the store's if that is another one."""
    data = look_at(DataFolder(settings.data_dir).root).there
    findings = [_judge("disk", data)]
    folder = Store(settings.out).folder
    if folder is not None:
        there = look_at(folder).there
        if there.stat().st_dev != data.stat().st_dev:
            findings.append(_judge("store's disk", there))
    return findings


def judge_disk(about: str, folder: Path, free: int, total: int) -> Finding:
    """Whether there is room on a disk. `free`, `total`: bytes."""
    says = f"{size(free)} of {size(total)} free at {folder}"
    facts = {"path": str(folder), "free_bytes": free, "total_bytes": total}
    if not total:
        return ok(about, f"{folder} is on no disk that has a size", **facts)
    do = (
        "make room: `renderkiln models list` shows what is large, and `renderkiln models cache clean` frees what is old"
    )
    if free < _NOTHING_LEFT:
        return problem(about, says, do, **facts)
    if free < _LITTLE_LEFT:
        return warning(about, f"{says}: a model takes 2 to 10 GB", do, **facts)
    return ok(about, says, **facts)


def _judge(about: str, folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    return judge_disk(about, folder, usage.free, usage.total)

"""Shows a conversion: a bar with the time left while it runs, a table at its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from ..runtimes.manifest import StageInfo
from .bundle import Bundle
from .jobs import PHASES, Phase
from .plan import Plan, StagePlan
from .run import Report, Watcher
from .source import Source

#: About how the time of a conversion divides among its stages: their weights in Stable Diffusion.
_SHARES = {"unet": 60, "control-unet": 60, "controlnet": 30, "text_encoder_2": 25}
_SHARE = 10
#: Below this share of the work done an estimate of the rest says nothing.
_ENOUGH = 0.04


class ProgressWatcher(Watcher):
    """Bars on a terminal; elsewhere a line for each stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("looking at the model", total=None, left="")
        self._total = self._done = 0
        self._began = time.monotonic()

    def __enter__(self) -> ProgressWatcher:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def planned(self, plan: Plan, kept: tuple[str, ...], source: Source) -> None:
        waiting = [stage for stage in plan.stages if stage.stage not in kept]
        self._total = sum(_share(stage) for stage in waiting)
        self._began = time.monotonic()
        if kept:
            self._console.print(f"kept: {', '.join(kept)}", markup=False, highlight=False)

    def phase(self, stage: StagePlan, phase: Phase) -> None:
        names = list(PHASES)
        begin = PHASES.get(phase.phase, 0.0)
        following = [PHASES[name] for name in names[names.index(phase.phase) + 1 :]] if phase.phase in PHASES else []
        end = following[0] if following else 1.0
        share = begin + (end - begin) * (phase.done / phase.of if phase.of else 0)
        count = f" {phase.done} of {phase.of}" if phase.of else ""
        self._show(f"{stage.stage}: {phase.phase}{count}", self._done + share * _share(stage))

    def ended(self, stage: StagePlan, info: StageInfo) -> None:
        self._done += _share(stage)
        if not self._console.is_terminal:
            self._console.print(
                f"{stage.stage}: {info.size_bytes / 1e6:,.1f} MB in {info.seconds:.0f} s", markup=False, highlight=False
            )
        self._show(f"{stage.stage}: done", float(self._done))

    def drawing(self) -> None:
        self._show("self-test picture", float(self._total))

    def _show(self, description: str, done: float) -> None:
        left = ""
        if self._total and done / self._total > _ENOUGH:
            seconds = (time.monotonic() - self._began) * (self._total / done - 1)
            left = f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"
        self._progress.update(self._task, description=description, completed=done, total=self._total, left=left)


def table(report: Report) -> Table:
    """Stage, size, bits, PSNR, seconds."""
    shown = Table(box=None, header_style="bold")
    shown.add_column("stage")
    for name in ("MB", "bits", "PSNR dB", "seconds"):
        shown.add_column(name, justify="right")
    for name, info in report.manifest.stages.items():
        worst = f"{info.check.worst.decibels:.1f}" if info.check else "not checked"
        seconds = f"{info.seconds:.1f}" if name in report.peaks else "kept"
        bits = "" if info.bits is None else f"{info.bits:g}"
        shown.add_row(name, f"{info.size_bytes / 1e6:,.1f}", bits, worst, seconds)
    return shown


def as_json(report: Report, folder: Path, bundle: Bundle | None) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "folder": str(folder),
        "model": report.manifest.model,
        "stages": [
            {
                "stage": name,
                "files": [package.file for package in info.packages],
                "size_bytes": info.size_bytes,
                "bits": info.bits,
                "psnr_decibels": info.check.worst.decibels if info.check else None,
                "seconds": info.seconds,
                "kept": name not in report.peaks,
                "peak_bytes": report.peaks.get(name),
            }
            for name, info in report.manifest.stages.items()
        ],
        "bundle": None
        if bundle is None
        else {"folder": str(bundle.folder), "compiled": list(bundle.compiled), "left_out": bundle.left_out},
    }


def _share(stage: StagePlan) -> int:
    return _SHARES.get(stage.kind, _SHARE)

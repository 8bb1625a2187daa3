"""Converts a model: each stage in a process of its own, one after another; what is there already is kept.

Everything unfinished lies in one hidden folder of the target, which the next start empties. A stage's packages are
renamed into place when they are whole, and the manifest names them after that.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from renderkiln.schema import errors
from renderkiln.schema.errors import BadInputError, ConversionError, ModelLoadError, RenderkilnError, error_of

from ..runtimes import manifest as manifests
from ..runtimes.manifest import Manifest, StageInfo
from . import picture
from .coreai_bundle import write_bundle
from .facts import ModelFacts
from .jobs import EVENTS, Done, Failed, Phase, StageJob
from .options import ConvertOptions, Format
from .plan import PROJECTION, Plan, StagePlan, make_plan
from .small_files import copy_small_files
from .source import Source, read_facts

WORK_FOLDER = ".converting"
#: What decides what is written; of renderkiln itself that is said by plan.CONVERTER.
_DECIDING: Mapping[Format, tuple[str, ...]] = {
    "coreml": ("coremltools", "torch", "diffusers", "transformers"),
    "coreai": ("coreai-core", "coreai-torch", "coreai-opt", "torch", "diffusers", "transformers"),
}
_EXTRAS: Mapping[Format, str] = {"coreml": "worker,coreml", "coreai": "worker,coreai"}
#: Lines of a dead process's log that its error shows.
_LOG_LINES = 5


@dataclass
class Report:
    """What became of each stage."""

    manifest: Manifest
    #: Names of stages that were there already, made with the same settings.
    kept: tuple[str, ...]
    #: Largest resident set of each stage's process, in bytes.
    peaks: Mapping[str, int] = field(default_factory=dict)
    #: Why there is no self-test picture, where one was to be drawn.
    no_picture: str | None = None


class Watcher:
    """Hears how far a conversion is; does nothing unless overridden."""

    def planned(self, plan: Plan, kept: tuple[str, ...], source: Source) -> None:
        """The stages are known, and which of them are there already."""

    def began(self, stage: StagePlan) -> None:
        """A stage is at work now."""

    def phase(self, stage: StagePlan, phase: Phase) -> None:
        """It has come so far."""

    def ended(self, stage: StagePlan, info: StageInfo) -> None:
        """It is in place."""

    def drawing(self) -> None:
        """The stages are in place, and draw the self-test picture now."""


def convert(source: Source, options: ConvertOptions, folder: Path, watcher: Watcher | None = None) -> Report:
    """Converts a model into a folder.

    Raises:
        BadInputError: the model, a LoRA, a recipe or the options do not fit; nothing was written.
        ConversionError: a stage failed; those before it are in place and in the manifest.
    """
    watcher = watcher or Watcher()
    versions = library_versions(options.format)
    facts = read_facts(source, options)
    plan = make_plan(facts, options, {name: versions[name] for name in _DECIDING[options.format]})
    _read_what_stages_will(options)
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"-o {folder} is a file; give a folder")
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder), _disk_errors(folder), _work_folder(folder) as work:
        run = _Run(source, options, folder, work, facts, plan, versions, watcher)
        return run.go()


def _read_what_stages_will(options: ConvertOptions) -> None:
    """So that a mistake in a file is said now, and not by a stage that has been at work for minutes."""
    from .compress.recipe_file import read_recipe
    from .lora import read_lora

    for lora in options.loras:
        read_lora(lora.path)
    for _, path in options.recipes:
        read_recipe(path)


def library_versions(format: Format = "coreml") -> dict[str, str]:
    """The versions of what decides the result. Raises WorkerUnavailableError if something is not installed."""
    found, missing = {}, []
    for name in ("renderkiln", *_DECIDING[format], "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise errors.WorkerUnavailableError(
            f"converting needs {', '.join(missing)}: pip install 'renderkiln[{_EXTRAS[format]}]'"
        )
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}


@dataclass
class _Run:
    source: Source
    options: ConvertOptions
    folder: Path
    work: Path
    facts: ModelFacts
    plan: Plan
    versions: Mapping[str, str]
    watcher: Watcher
    peaks: dict[str, int] = field(default_factory=dict)

    def go(self) -> Report:
        stages = self._stages_of_before()
        kept = tuple(stage.stage for stage in self.plan.stages if self._is_there(stage, stages.get(stage.stage)))
        self.watcher.planned(self.plan, kept, self.source)
        controlnets = tuple(stage.stage for stage in self.plan.stages if stage.kind == "controlnet")
        copy_small_files(self.source, self.folder, controlnets)
        manifest = self._save(stages)
        waiting = [stage for stage in self.plan.stages if stage.stage not in kept]
        if waiting:
            (self.folder / manifests.SELF_TEST).unlink(missing_ok=True)
        processes = _Processes(self.work)
        try:
            for number, stage in enumerate(waiting):
                process = processes.take(start_next=number + 1 < len(waiting))
                info = self._convert(stage, process)
                if stage.stage in stages:
                    # Out of the manifest first: while packages are exchanged it must not vouch for them.
                    self._save({name: each for name, each in stages.items() if name != stage.stage})
                self._put_in_place(stage, stages.get(stage.stage))
                stages[stage.stage] = info
                manifest = self._save(stages)
                self.watcher.ended(stage, info)
        finally:
            processes.close()
        return Report(manifest=manifest, kept=kept, peaks=self.peaks, no_picture=self._draw(manifest))

    def _draw(self, manifest: Manifest) -> str | None:
        if self.options.check is False or not picture.is_possible(manifest):
            return None
        if (self.folder / manifests.SELF_TEST).exists() or not self._draws_in_time(manifest):
            return None
        self.watcher.drawing()
        return picture.draw(self.folder)

    def _draws_in_time(self, manifest: Manifest) -> bool:
        """A picture takes a runtime as long as a check does; what was too large for that is too large for this."""
        return self.options.check is True or all(info.check is not None for info in manifest.stages.values())

    def _stages_of_before(self) -> dict[str, StageInfo]:
        try:
            before = manifests.read(self.folder)
        except ModelLoadError:
            if (self.folder / manifests.FILE_NAME).exists():
                raise  # somebody's file: not ours to overwrite
            return {}
        if (before.variant == "coreai") != (self.options.format == "coreai"):
            raise BadInputError(
                f"{self.folder} holds {before.model} in another format ({before.variant}); convert into another folder"
            )
        if (before.model, before.family) != (self.source.name, self.facts.family):
            raise BadInputError(f"{self.folder} holds {before.model} already; convert {self.source.name} into another")
        same_sizes = before.sizes == self.plan.sizes
        planned = {stage.stage for stage in self.plan.stages}
        return {
            name: info
            for name, info in before.stages.items()
            if name in planned or same_sizes or name.startswith("text_encoder")
        }

    def _is_there(self, stage: StagePlan, before: StageInfo | None) -> bool:
        if before is None or before.settings_digest != stage.settings_digest:
            return False
        must_be_checked = self.options.check or (self.options.check is None and self.options.format == "coreml")
        if must_be_checked and before.check is None:
            return False
        return all(manifests.compare(package, self.folder, digests=True) is None for package in before.packages)

    def _convert(self, stage: StagePlan, process: _StageProcess) -> StageInfo:
        self.watcher.began(stage)
        target = self.work / "stage"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        kind = "unet" if stage.kind == "control-unet" and not self.options.recipe_for(stage.kind) else stage.kind
        job = StageJob(
            plan=stage,
            source=self.source,
            family=self.facts.family,
            loras=self.options.loras if stage.kind not in ("controlnet", "safety_checker", PROJECTION) else (),
            recipe=self.options.recipe_for(kind),
            check=self.options.check is not False,
            check_slowly=self.options.check is True,
            folder=target,
        )
        done = process.run(job, lambda phase: self.watcher.phase(stage, phase))
        self.peaks[stage.stage] = done.peak_bytes
        return StageInfo(
            stage=stage.stage,
            packages=done.packages,
            bits=done.bits,
            attention=stage.attention,
            settings_digest=stage.settings_digest,
            seconds=done.seconds,
            check=done.check,
        )

    def _put_in_place(self, stage: StagePlan, before: StageInfo | None) -> None:
        old = {package.file for package in before.packages} if before else set()
        for name in {*old, *stage.files}:
            _remove(self.folder / name, self.work)
        for name in stage.files:
            (self.work / "stage" / name).replace(self.folder / name)

    def _save(self, stages: Mapping[str, StageInfo]) -> Manifest:
        order = {stage.stage: number for number, stage in enumerate(self.plan.stages)}
        manifest = Manifest(
            model=self.source.name,
            revision=self.source.revision,
            pipeline=self.facts.pipeline,
            family=self.facts.family,
            variant="coreai" if self.options.format == "coreai" else self.options.attention,
            sizes=self.plan.sizes,
            stages=dict(sorted(stages.items(), key=lambda item: order.get(item[0], -1))),
            versions=self.versions,
        )
        if self.options.format == "coreai":
            write_bundle(self.folder, manifest, self.facts.configs)
        manifests.save(manifest, self.folder)
        return manifest


class _Processes:
    """Has the next stage's process import its libraries while a stage is at work."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._running: list[_StageProcess] = []

    def take(self, *, start_next: bool) -> _StageProcess:
        if not self._running:
            self._running.append(_StageProcess(self._work))
        process = self._running[-1]
        if start_next:
            self._running.append(_StageProcess(self._work))
        return process

    def close(self) -> None:
        for process in self._running:
            process.kill()


class _StageProcess:
    def __init__(self, work: Path) -> None:
        handle, self._log = tempfile.mkstemp(dir=work, prefix="log-", suffix=".txt")
        # Spawned, never forked, and in a session of its own: Ctrl-C is the command's to hear.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "renderkiln.worker.convert.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=handle,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": str(work), "TOKENIZERS_PARALLELISM": "false"},
        )
        os.close(handle)

    def run(self, job: StageJob, tell: Callable[[Phase], None]) -> Done:
        """Waits for the job's end. Raises what the process reports, or ConversionError if it died."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(job.model_dump_json() + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            event = EVENTS.validate_json(line)
            if isinstance(event, Phase):
                tell(event)
            elif isinstance(event, Failed):
                raise _error(job.plan.stage, event)
            else:
                self.kill()
                return event
        raise ConversionError(f"{job.plan.stage}: {self._how_it_died()}")

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def _how_it_died(self) -> str:
        code = self._process.wait()
        if code == -9:
            return (
                "its process was killed; it is likely that memory ran out. Close other programs, or take a smaller size"
            )
        log = Path(self._log).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = " | ".join(log[-_LOG_LINES:]) or "nothing on standard error"
        return f"its process ended with {code}: {said}"


def _error(stage: str, failed: Failed) -> RenderkilnError:
    message = failed.message if failed.message.startswith(stage) else f"{stage}: {failed.message}"
    return error_of(failed.kind, ConversionError)(message)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """One conversion at a time writes into a folder. The lock is the system's: it goes with the process that has it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInputError(f"another conversion is writing into {folder} right now") from None
        yield
    finally:
        os.close(handle)


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    work = folder / WORK_FOLDER
    # Whoever left it there is dead: the lock says so.
    shutil.rmtree(work, ignore_errors=True)
    for path in folder.glob(".manifest-*.json"):
        path.unlink(missing_ok=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise ConversionError(f"cannot write into {folder}: {error.strerror or error}{where}") from error


def _remove(path: Path, work: Path) -> None:
    """Takes a package away at once: half of one must never be seen."""
    if path.exists():
        path.replace(work / f"old-{time.monotonic_ns()}")

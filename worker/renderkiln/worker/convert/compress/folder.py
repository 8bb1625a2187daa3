"""Compresses a package, or a folder of converted models: every stage that Apple's converter would compress.

A folder is copied whole, its manifest brought up to date; it appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from renderkiln.schema.errors import BadInputError, CompressionError, PredictionError, UnsupportedOpError

from ...runtimes import manifest as manifests
from ...runtimes.chain import Chain
from ...runtimes.mlpackage import open_package
from ...runtimes.reference import ReferenceRuntime
from ..options import COMPRESSED
from .layers import find_layers, read_graph
from .palettize import CompressionResult, average_bits, palettize
from .planner import psnr_of
from .quality import noise, random_inputs, vocabulary
from .recipe import UNTOUCHED, Recipe, of_layers, uniform
from .writing import new_folder, reason

#: Told of which stage, what is being done, and how many of how many layers are done.
Progress = Callable[[str, str, int, int], None]
RUNNING = "comparing outputs"
#: What Apple's converter calls its packages; the kinds are as in a manifest.
_APPLE = re.compile(
    r"Stable_Diffusion_version_.+?_(text_encoder_2|text_encoder|control-unet|unet|refiner)(_chunk[12])?\.mlpackage"
    r"|(ControlNet)_.+\.mlpackage"
)


@dataclass(frozen=True)
class Stage:
    """What is compressed together: one package, or the chunks of one model in the order in which they run."""

    name: str
    files: tuple[str, ...]


@dataclass
class StageReport:
    """What became of a stage."""

    stage: str
    files: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    bits: float
    seconds: float
    #: By output, the PSNR in dB on random inputs against the uncompressed stage; empty if it was not compared.
    psnr: dict[str, float] = field(default_factory=dict)
    #: Why it was not compared.
    unchecked: str | None = None
    layers: dict[str, int] = field(default_factory=dict)

    @property
    def worst(self) -> float | None:
        """The PSNR of the output that suffers most."""
        return min(self.psnr.values(), default=None)


@dataclass(frozen=True)
class Comparison:
    """How compressed stages are compared with the originals."""

    samples: int = 2
    seed: int = 0


def compress(
    source: Path,
    target: Path,
    *,
    nbits: int | None = None,
    recipe: Recipe | None = None,
    comparison: Comparison | None = None,
    progress: Progress | None = None,
) -> list[StageReport]:
    """Writes a smaller copy of a package or of a folder of packages.

    Args:
        source: a `.mlpackage`, a folder that `renderkiln convert` wrote, or one that Apple's converter wrote.
        target: a `.mlpackage` or a folder; must not exist.
        nbits: the bits of every layer that the recipe does not name.
        recipe: bits for each layer; each of its lines must name a layer of some stage.
        comparison: how to compare outputs; without it they are not compared.
        progress: told of which stage, what is being done, and how many of how many layers are done.

    Raises:
        BadInputError, RecipeError, ModelLoadError, CompressionError: as `palettize.palettize`. Nothing is left then.
    """
    if nbits is None and recipe is None:
        raise BadInputError("give a number of bits or a recipe")
    wanted = (recipe or Recipe()).model_copy(update={} if nbits is None else {"nbits": uniform(nbits).nbits})
    work = _Work(wanted, comparison, progress or (lambda _stage, _what, _done, _of: None))
    if source.suffix == ".mlpackage" or not source.is_dir():
        bits = wanted.assign(find_layers(read_graph(open_package(source))))
        stage = Stage(source.stem, (source.name,))
        return [work.stage(stage, source.parent, target.parent, {source.name: bits}, target.name)]
    return _compress_folder(source, target, work)


def _compress_folder(source: Path, target: Path, work: _Work) -> list[StageReport]:
    if target.suffix == ".mlpackage":
        raise BadInputError(f"{source} is a folder of packages; {target} should name a folder, too")
    if target.exists() or target.is_symlink():
        same = target.exists() and target.samefile(source)
        raise BadInputError(
            f"{target} is the folder itself, and is never overwritten"
            if same
            else f"{target} exists already; remove it, or choose another"
        )
    if source.resolve() in target.resolve().parents:
        raise BadInputError(f"{target} lies inside of {source}, which is to be copied")
    manifest = manifests.load(source) if (source / manifests.FILE_NAME).exists() else None
    stages = _stages(source, manifest)
    bits = _assign(source, stages, work.recipe)
    stages = [stage for stage in stages if any(file in bits for file in stage.files)]
    with new_folder(beside=target) as folder:
        copy = folder / target.name
        compressed = {file for stage in stages for file in stage.files if file in bits}
        _copy(source, copy, leave_out=compressed)
        reports = [work.stage(stage, source, copy, bits) for stage in stages]
        if manifest is not None:
            _save_manifest(manifest, reports, copy)
        try:
            copy.replace(target)
        except OSError as error:
            raise CompressionError(f"{target} cannot be put in place: {error.strerror}") from error
    return reports


def _stages(source: Path, manifest: manifests.Manifest | None) -> list[Stage]:
    """The stages of a folder that are worth compressing, by its manifest or by Apple's file names."""
    if manifest is not None:
        return [
            Stage(name, tuple(package.file for package in info.packages))
            for name, info in manifest.stages.items()
            if name in COMPRESSED or name.startswith("controlnet")
        ]
    found: dict[str, list[str]] = {}
    for path in sorted(source.glob("*.mlpackage")):
        match = _APPLE.fullmatch(path.name)
        if match:
            found.setdefault(match[1] or path.stem, []).append(path.name)
    if not found:
        raise BadInputError(
            f"{source} holds no {manifests.FILE_NAME}, and no packages with the names that Apple's converter gives; "
            "name a .mlpackage itself"
        )
    stages = []
    for name, files in found.items():
        # Beside the chunks there may be the whole that they were cut from: then each stands for itself.
        chunks = [file for file in files if "_chunk" in file]
        stages += [Stage(name, (file,)) for file in files if file not in chunks]
        stages += [Stage(f"{name} in chunks" if len(files) > len(chunks) else name, tuple(chunks))] if chunks else []
    return stages


def _assign(source: Path, stages: list[Stage], recipe: Recipe) -> dict[str, dict[str, int]]:
    """The bits of every layer of every file that gets any; a recipe's line may name a layer of any of them."""
    layers = {file: find_layers(read_graph(open_package(source / file))) for stage in stages for file in stage.files}
    if not any(layers.values()):
        raise BadInputError(f"{source} has no weights to compress: they are compressed already, or very small")
    recipe.check_names([name for each in layers.values() for name in each])
    bits = {file: {name: recipe.bits_of(name) for name in each} for file, each in layers.items()}
    chosen = {file: each for file, each in bits.items() if any(width != UNTOUCHED for width in each.values())}
    if not chosen:
        raise BadInputError(f"the recipe leaves every weight of {source} as it is")
    return chosen


@dataclass(frozen=True)
class _Work:
    recipe: Recipe
    comparison: Comparison | None
    progress: Progress

    def stage(
        self, stage: Stage, source: Path, target: Path, bits: Mapping[str, dict[str, int]], name: str | None = None
    ) -> StageReport:
        """Compresses one stage's files from a folder into another; `name` is what a single file shall be called."""
        results: dict[str, CompressionResult] = {}
        for file in stage.files:
            if file in bits:
                results[file] = palettize(
                    source / file,
                    target / (name or file),
                    recipe=of_layers(bits[file]),
                    progress=lambda what, done, of: self.progress(stage.name, what, done, of),
                )
        layers = {layer.name: (layer.elements, layer.nbits) for each in results.values() for layer in each.layers}
        report = StageReport(
            stage=stage.name,
            files=stage.files,
            bytes_before=sum(open_package(source / file).size for file in stage.files),
            bytes_after=sum(open_package(target / (name or file)).size for file in stage.files),
            bits=average_bits(layers),
            seconds=sum(each.seconds for each in results.values()),
            layers={layer: width for layer, (_, width) in layers.items()},
        )
        if self.comparison is None:
            report.unchecked = "not asked for"
            return report
        self.progress(stage.name, RUNNING, 0, 2)
        try:
            report.psnr = self._compare(
                stage.name, [source / file for file in stage.files], [target / (name or file) for file in stage.files]
            )
        except (UnsupportedOpError, PredictionError) as error:
            # The package is fine all the same; only this machine cannot tell how good it is.
            report.unchecked = str(error)
        return report

    def _compare(self, stage: str, originals: list[Path], smaller: list[Path]) -> dict[str, float]:
        assert self.comparison is not None
        before = Chain([ReferenceRuntime.load(path) for path in originals])
        tokens = max(vocabulary(read_graph(open_package(path))) for path in originals)
        seeds = range(self.comparison.seed, self.comparison.seed + self.comparison.samples)
        inputs = [random_inputs(before.inputs, tokens, seed) for seed in seeds]
        references = [before.predict(each) for each in inputs]
        self.progress(stage, RUNNING, 1, 2)
        del before  # a big model should not be there twice
        after = Chain([ReferenceRuntime.load(path) for path in smaller])
        outputs = [after.predict(each) for each in inputs]
        self.progress(stage, RUNNING, 2, 2)
        return {name: psnr_of(error) for name, error in noise(references, outputs).items()}


def _copy(source: Path, target: Path, leave_out: set[str]) -> None:
    """Everything but the packages to be compressed, and but what was made of them: compiled models, a picture."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        return ({*leave_out, "Resources", manifests.SELF_TEST} & set(names)) if Path(folder) == source else set()

    try:
        shutil.copytree(source, target, ignore=ignored)
    except OSError as error:
        raise CompressionError(f"{source} cannot be copied: {reason(error)}") from error


def _save_manifest(manifest: manifests.Manifest, reports: list[StageReport], folder: Path) -> None:
    stages = dict(manifest.stages)
    for report in reports:
        before = stages[report.stage]
        packages = []
        for info in before.packages:
            package = open_package(folder / info.file)
            packages.append(info.model_copy(update={"size_bytes": package.size, "sha256": package.sha256()}))
        # Not what was converted any more: converting into this folder with the old settings must not keep it.
        digest = hashlib.sha256(json.dumps([before.settings_digest, report.layers], sort_keys=True).encode())
        stages[report.stage] = before.model_copy(
            update={
                "packages": tuple(packages),
                "bits": round(report.bits, 2),
                "settings_digest": digest.hexdigest(),
                "check": None if before.check is None else _checked(before.check, report),
            }
        )
    try:
        manifests.save(manifest.model_copy(update={"stages": stages}), folder)
    except OSError as error:
        raise CompressionError(f"{manifests.FILE_NAME} cannot be written: {error.strerror}") from error


def _checked(before: manifests.CheckReport, report: StageReport) -> manifests.CheckReport | None:
    """The check of the dense package, with what the compressed one came to; nothing, if that is not known."""
    if report.worst is None:
        return None
    compressed = tuple(
        # JSON has no infinity: equal outputs are written as 200 dB, outputs that are not finite as -200.
        manifests.Psnr(
            inputs="random, against the package before", output=output, decibels=min(max(round(psnr, 2), -200.0), 200.0)
        )
        for output, psnr in report.psnr.items()
    )
    return before.model_copy(update={"compressed": compressed})

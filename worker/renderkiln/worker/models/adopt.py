"""Describes packages that somebody else converted: writes our `manifest.json` for a folder of Apple's naming.

What each takes and gives is read from the package's spec, or from a compiled model's `metadata.json`, and held to what
rendering needs; so a folder with a missing stage or half of a chunked UNet is refused here, not at the first picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from renderkiln.schema.errors import ModelLoadError, UnsupportedModelError, WorkerUnavailableError

from ..engine.converted.interface import check_manifest
from ..needs import say_what_is_missing
from ..runtimes import manifest as manifests
from ..runtimes.coreai.asset import Asset
from ..runtimes.coreai.system import why_not
from ..runtimes.describing import bits_of, describe, interface_of
from ..runtimes.manifest import Manifest, PackageInfo, StageInfo
from ..runtimes.model_files import ModelFiles
from .apple import ASSET, COMPILED, PACKAGE, part_of
from .hub import INDEX
from .layout import COREAI, Variant
from .weights import read_json

_HAS_ATTENTION = ("unet", "control-unet")


def adopt(folder: Path, small_files: Path, *, model: str, revision: str | None, variant: Variant) -> Manifest:
    """Writes the manifest of a folder of packages, and returns it.

    Args:
        folder: of the packages; it has no manifest yet, and no package in a folder below it.
        small_files: the folder of model_index.json and the configs that go with them.
        model: the name of the repository, or of the folder that they came from.

    Raises:
        ModelLoadError: a stage is missing or damaged, one chunk is without the other, or a package takes or gives what
            no stage of its kind does.
        UnsupportedModelError: the small files are of a pipeline that is not known.
    """
    pipeline, family = _pipeline(small_files)
    stages = {}
    for stage, files in sorted(_stages(folder).items()):
        described = [_describe(folder / file) for file in files]
        bits = [each for _, each in described if each is not None]
        stages[stage] = StageInfo(
            stage=stage,
            packages=tuple(info for info, _ in described),
            bits=min(bits) if bits else None,
            attention=variant if stage in _HAS_ATTENTION and variant != COREAI else None,
        )
    scale = pixels_per_latent(small_files)
    manifest = Manifest(
        model=model,
        revision=revision,
        pipeline=pipeline,
        family=family,
        variant=variant,
        sizes=_sizes(folder, stages, scale),
        stages=stages,
    )
    check_manifest(manifest, scale)
    manifests.save(manifest, folder)
    return manifest


def say_what_reading_needs(files: Iterable[str]) -> None:
    """Raises WorkerUnavailableError where files lie in packages or assets that cannot be read without Apple's library.

    Asked before gigabytes are fetched or copied.
    """
    files = list(files)
    if any(f"{PACKAGE}/" in each for each in files):
        say_what_is_missing("taking in Core ML packages", ("coremltools", "numpy", "torch"), "worker,coreml")
    lacking = why_not() if any(f"{ASSET}/" in each for each in files) else None
    if lacking is not None:
        raise WorkerUnavailableError(f"taking in models for Core AI {lacking}")


def check_specs(folder: Path, small_files: Path) -> None:
    """Holds a manifest that came with its packages to what they say of themselves, and to what rendering needs.

    Raises:
        ModelLoadError: it says of a package what is not so, or a stage is missing.
    """
    manifest = manifests.read(folder)
    for stage in manifest.stages.values():
        for info in stage.packages:
            found = interface_of(_opened(folder / info.file), info.functions)
            manifests.compare_interface(folder / info.file, info, found.inputs, found.outputs)
    check_manifest(manifest, pixels_per_latent(small_files))


def pixels_per_latent(small_files: Path) -> int:
    """Pixels of the picture for each of the latents', in each direction. Raises ModelLoadError."""
    blocks = read_json(small_files / "vae" / "config.json").get("block_out_channels")
    return 2 ** (len(blocks) - 1) if isinstance(blocks, list) and blocks else 8


def _pipeline(small_files: Path) -> tuple[str, Any]:
    from ..convert.source import FAMILIES

    pipeline = str(read_json(small_files / INDEX).get("_class_name"))
    if pipeline not in FAMILIES:
        raise UnsupportedModelError(f"the small files are those of a {pipeline}; known are {', '.join(FAMILIES)}")
    return pipeline, FAMILIES[pipeline]


def _stages(folder: Path) -> dict[str, list[str]]:
    """The packages of each stage: one, or two chunks."""
    parts: dict[str, dict[int, str]] = defaultdict(dict)
    for path in sorted(folder.iterdir()):
        part = part_of(path.name)
        if part is None:
            continue
        before = parts[part.stage].setdefault(part.chunk, path.name)
        if before != path.name:
            raise ModelLoadError(f"{folder} holds {part.stage} twice: {before} and {path.name}; keep one of them")
    if not parts:
        raise ModelLoadError(
            f"{folder} holds no models ({PACKAGE}, {COMPILED} or {ASSET}) that are named as Apple's are"
        )
    return {stage: _chunks(folder, stage, found) for stage, found in parts.items()}


def _chunks(folder: Path, stage: str, found: Mapping[int, str]) -> list[str]:
    for here, missing in ((1, 2), (2, 1)):
        if here in found and missing not in found:
            raise ModelLoadError(
                f"{folder} holds chunk {here} of {stage} ({found[here]}) without chunk {missing}: it is not complete"
            )
    return [found[0]] if 0 in found else [found[1], found[2]]


def _describe(path: Path) -> tuple[PackageInfo, float | None]:
    """What a package holds, and its bits per weight where it says."""
    model = _opened(path)
    return describe(path), bits_of(model)


def _opened(path: Path) -> ModelFiles:
    """A model that is what it was when it was written, as far as it brings word of that."""
    model = manifests.open_model(path)
    if isinstance(model, Asset):
        model.check_hash()
    return model


def _sizes(folder: Path, stages: Mapping[str, StageInfo], scale: int) -> tuple[tuple[int, int], ...]:
    """What the UNet can render, in pixels, its default size first."""
    stage = stages.get("unet") or stages.get("control-unet")
    if stage is None:
        raise ModelLoadError(f"{folder} has no unet: it is not complete")
    sample = next((each for each in stage.packages[0].inputs if each.name == "sample"), None)
    shapes = [shape for shape in (sample.shapes if sample else ()) if len(shape) == 4]
    if not shapes:
        raise ModelLoadError(f"{folder / stage.packages[0].file} does not say what sizes it renders")
    return tuple(dict.fromkeys((width * scale, height * scale) for _, _, height, width in shapes))

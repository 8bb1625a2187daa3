"""`manifest.json` of a folder of converted models: which model they were made of, how, and what each takes and gives.

Read by whatever loads the folder, so it must be true: `load` compares it with the files.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from renderkiln.home.json_files import read_small
from renderkiln.schema.errors import ModelLoadError

from .base import TensorInfo
from .compiled import SUFFIX as COMPILED_SUFFIX
from .compiled import open_compiled
from .coreai.asset import SUFFIX as ASSET_SUFFIX
from .coreai.asset import open_asset
from .coreai.bundle import FILE_NAME as BUNDLE_FILE_NAME
from .mlpackage import open_package
from .model_files import ModelFiles

FILE_NAME = "manifest.json"
#: Beside it, a picture of one step that was drawn when the model was converted; see `engine/self_test.py`.
SELF_TEST = "self-test.png"
#: What lies beside a folder's packages and goes where they go, as far as it is there.
COMPANIONS = (FILE_NAME, SELF_TEST, BUNDLE_FILE_NAME)
SCHEMA_VERSION: Literal[1] = 1
#: A manifest of ours is some tens of kilobytes; a bigger file is somebody else's.
_LIMIT = 8 << 20
_SAFE_NAME = re.compile(r"[A-Za-z0-9._-]+\.(mlpackage|mlmodelc|aimodel)")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Psnr(_Record):
    """How near one output came to the torch original's, for one set of inputs."""

    #: `random 1`, `random 2`, …, or `real`.
    inputs: str
    output: str
    decibels: float


class CheckReport(_Record):
    """What a stage's check found."""

    #: What the 16-bit (or float32) package had to reach with each output, in decibels.
    bar: float
    results: tuple[Psnr, ...]
    #: The same inputs through the compressed package; empty where nothing was compressed. No bar holds for these.
    compressed: tuple[Psnr, ...] = ()

    @property
    def worst(self) -> Psnr:
        """Of what was written: the compressed package's results where there are some."""
        return min(self.compressed or self.results, key=lambda each: each.decibels)


class PackageInfo(_Record):
    """One `.mlpackage` folder, a `.mlmodelc` folder, which is compiled already, or an `.aimodel` folder of Core AI."""

    #: Its name in the folder of the manifest.
    file: str
    size_bytes: int = Field(ge=0)
    #: Of what is in it, as `ModelFiles.sha256` takes it.
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    #: Of a Core AI asset: the functions to use, one for each size, the default size's first; empty: `main`.
    functions: tuple[str, ...] = ()

    @field_validator("file")
    @classmethod
    def _is_a_plain_name(cls, name: str) -> str:
        if not _SAFE_NAME.fullmatch(name) or name.startswith("."):
            raise ValueError("a package's file must be a plain name that ends in .mlpackage, .mlmodelc or .aimodel")
        return name


class StageInfo(_Record):
    """One stage: a package, or two chunks that run one after the other."""

    stage: str
    packages: tuple[PackageInfo, ...] = Field(min_length=1)
    #: Bits per weight: 16 or 32, fewer where they were palettized; a recipe's mean is not whole. None where it is not
    #: known, because somebody else converted it.
    bits: float | None = Field(default=None, gt=0, le=32)
    #: original, split-einsum or split-einsum-v2, for stages that have attention of that kind.
    attention: str | None = None
    #: Of all that decides what the stage is made of; the same digest need not be converted again. Empty where somebody
    #: else converted it.
    settings_digest: str = ""
    #: How long converting it took.
    seconds: float = Field(default=0, ge=0)
    check: CheckReport | None = None

    @property
    def size_bytes(self) -> int:
        return sum(package.size_bytes for package in self.packages)


class Manifest(_Record):
    """A folder of converted models."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    revision: str | None = None
    #: model_index.json's `_class_name`.
    pipeline: str
    family: Literal["sd", "sdxl"]
    #: The attention that the UNet was converted with, or `coreai`.
    variant: str
    #: Width and height in pixels, the default size first.
    sizes: tuple[tuple[int, int], ...] = Field(min_length=1)
    #: By stage: text_encoder, unet, controlnet-NAME …
    stages: Mapping[str, StageInfo]
    #: Of what converted it, by name; empty where somebody else did.
    versions: Mapping[str, str] = Field(default_factory=dict)

    @field_validator("stages")
    @classmethod
    def _stages_have_their_own_names(cls, stages: Mapping[str, StageInfo]) -> Mapping[str, StageInfo]:
        if any(name != info.stage for name, info in stages.items()):
            raise ValueError("a stage stands under another stage's name")
        return stages


def save(manifest: Manifest, folder: Path) -> None:
    """Writes `manifest.json` whole or not at all."""
    data = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    handle, name = tempfile.mkstemp(dir=folder, prefix=".manifest-", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner may read; a folder of models is for whoever may read the folder.
        Path(name).chmod(0o644)
        Path(name).replace(folder / FILE_NAME)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def read(folder: Path) -> Manifest:
    """The manifest as it stands, not compared with the files.

    Raises:
        ModelLoadError: there is none, or it is not one of ours.
    """
    path = folder / FILE_NAME
    try:
        values = read_small(path, _LIMIT, "a manifest of converted models")
    except FileNotFoundError:
        raise ModelLoadError(
            f"{folder} holds no {FILE_NAME}: it is no folder of converted models, or its conversion did not end"
        ) from None
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise ModelLoadError(f"{path} is not a manifest that this version reads: {where}: {first['msg']}") from error


def load(folder: Path, *, digests: bool = False) -> Manifest:
    """The manifest of a folder, compared with the folder's files.

    Args:
        digests: also read every package and compare its SHA-256; seconds for each gigabyte.

    Raises:
        ModelLoadError: there is none, it is not one of ours, or it says of the files what is not so.
    """
    manifest = read(folder)
    for stage in manifest.stages.values():
        for package in stage.packages:
            complaint = compare(package, folder, digests=digests)
            if complaint:
                raise ModelLoadError(f"{folder / FILE_NAME} does not fit the files beside it: {complaint}")
    return manifest


def compare(info: PackageInfo, folder: Path, *, digests: bool) -> str | None:
    """What is not so of what the manifest says of a package, or None."""
    try:
        package = open_model(folder / info.file)
    except ModelLoadError as error:
        return str(error)
    again = "convert it, or pull its model, again"
    if package.size != info.size_bytes:
        return f"{info.file} holds {package.size} bytes, not {info.size_bytes}; {again}"
    if digests and package.sha256() != info.sha256:
        return f"{info.file} is not what it was: its SHA-256 is another; {again}"
    return None


def open_model(path: Path) -> ModelFiles:
    """A package, a compiled model or an asset, by its name; nothing of it is loaded. Raises ModelLoadError."""
    openers: Mapping[str, Callable[[Path], ModelFiles]] = {COMPILED_SUFFIX: open_compiled, ASSET_SUFFIX: open_asset}
    return openers.get(path.suffix, open_package)(path)


def compare_interface(
    path: Path, info: PackageInfo, inputs: Iterable[TensorInfo], outputs: Iterable[TensorInfo]
) -> None:
    """Compares what the manifest says that a package takes and gives with what the package itself says.

    Raises:
        ModelLoadError: they differ. Shapes that one of them leaves open fit any.
    """
    for what, said, found in (("input", info.inputs, inputs), ("output", info.outputs, outputs)):
        complaint = _difference({each.name: each for each in said}, {each.name: each for each in found}, what)
        if complaint:
            raise ModelLoadError(f"{path} is not what its manifest says: {complaint}")


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

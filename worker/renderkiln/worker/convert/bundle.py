"""Lays out `Resources/`, the folder that Apple's Swift package and Diffusers for Mac load.

Compiled models come from `xcrun coremlcompiler`, which only macOS with Xcode has. Elsewhere everything else is laid
out, and what is left to do is said.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from renderkiln.schema.errors import ConversionError

from ..models.weights import read_json
from ..runtimes.manifest import Manifest
from ..runtimes.naming import XCODE_NAMES

FOLDER = "Resources"


@dataclass(frozen=True)
class Bundle:
    """What was laid out."""

    folder: Path
    #: Compiled models that are there.
    compiled: tuple[str, ...]
    #: Compiled models that are not, by the package that each is to be made of.
    left_out: dict[str, str]


def compiled_names(manifest: Manifest) -> dict[str, str]:
    """Where each package's compiled model belongs in `Resources/`, by the package's file name."""
    names: dict[str, str] = {}
    for stage, info in manifest.stages.items():
        for number, package in enumerate(info.packages, start=1):
            chunk = f"Chunk{number}" if len(info.packages) > 1 else ""
            names[package.file] = f"{_name(stage)}{chunk}.mlmodelc"
    return names


def make_bundle(folder: Path, manifest: Manifest) -> Bundle:
    """Makes `Resources/` in a folder of converted models; what was in it is replaced.

    Raises:
        ConversionError: the compiler failed, or the model's tokenizer has no vocabulary.
    """
    resources = folder / FOLDER
    shutil.rmtree(resources, ignore_errors=True)
    (resources / "controlnet").mkdir(parents=True)
    tokenizer = "tokenizer" if (folder / "tokenizer").is_dir() else "tokenizer_2"
    write_vocabulary(folder / tokenizer, resources)
    compiled, left_out = [], {}
    can_compile = sys.platform == "darwin" and shutil.which("xcrun") is not None
    for file, name in compiled_names(manifest).items():
        if can_compile:
            _compile(folder / file, resources / name)
            compiled.append(name)
        else:
            left_out[name] = file
    return Bundle(resources, tuple(compiled), left_out)


def write_vocabulary(tokenizer: Path, target: Path) -> None:
    """vocab.json and merges.txt of a CLIP tokenizer, taken out of tokenizer.json where they are not files already.

    Raises:
        ConversionError: there is neither.
    """
    if (tokenizer / "vocab.json").is_file() and (tokenizer / "merges.txt").is_file():
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(tokenizer / name, target / name)
        return
    if not (tokenizer / "tokenizer.json").is_file():
        raise ConversionError(f"{tokenizer} has neither vocab.json and merges.txt nor tokenizer.json")
    model = read_json(tokenizer / "tokenizer.json").get("model", {})
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges", [])]
    (target / "vocab.json").write_text(json.dumps(model.get("vocab", {}), ensure_ascii=False), encoding="utf-8")
    (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def _name(stage: str) -> str:
    if stage.startswith("controlnet-"):
        words = re.split(r"[_-]", stage.removeprefix("controlnet-"))
        return "controlnet/" + "".join(word.title() for word in words)
    return XCODE_NAMES[stage]


def _compile(package: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        command = ["xcrun", "coremlcompiler", "compile", str(package), temporary]
        done = subprocess.run(command, capture_output=True, text=True)
        made = Path(temporary) / f"{package.stem}.mlmodelc"
        if done.returncode != 0 or not made.is_dir():
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ConversionError(f"coremlcompiler could not compile {package.name}: {' '.join(said[-3:])}")
        made.replace(target)

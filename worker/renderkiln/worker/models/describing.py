"""What the store says of its models: rows for `models list` and `models show`, as data and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from renderkiln.home.models import InstalledModel
from renderkiln.home.origin import read_origin
from renderkiln.schema.errors import ModelLoadError

from ..runtimes import manifest as manifests
from ..runtimes.base import TensorInfo
from .hub import COMPONENTS
from .layout import variants

#: Of a commit's name, in a table.
_SHORT = 10


def listed(model: InstalledModel) -> dict[str, Any]:
    """A model in a list. What is damaged is listed with what is wrong."""
    row: dict[str, Any] = {
        "name": model.name,
        "path": str(model.path),
        "pipeline": model.pipeline,
        "size_bytes": model.size_bytes,
        "packaged": model.packaged,
        "revision": model.revision,
        "variants": [],
        "weights": _weights(model.path) != {},
        "problem": None,
    }
    try:
        row["variants"] = sorted(variants(model.path))
    except ModelLoadError as error:
        row["problem"] = str(error)
    return row


def shown(model: InstalledModel, tuned: tuple[str, str] | None = None) -> dict[str, Any]:
    """All that is known of a model without reading its weights.

    Args:
        tuned: the variant and the compute unit that were measured to be best here.

    Raises:
        ModelLoadError: a manifest or the record of its origin is not one of ours.
    """
    origin = read_origin(model.path)
    return {
        **listed(model),
        "repository": origin.repository if origin else None,
        "asked_for": origin.asked_for if origin else None,
        "original": origin.original if origin else None,
        "variants": {name: _variant(folder) for name, folder in sorted(variants(model.path).items())},
        "weights": _weights(model.path),
        "tuned": {"variant": tuned[0], "compute_unit": tuned[1]} if tuned else None,
    }


def list_table(rows: list[dict[str, Any]]) -> RenderableType:
    """`listed` for people."""
    table = Table(box=None, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("holds")
    table.add_column("MB", justify="right")
    table.add_column("revision")
    for row in rows:
        holds = ", ".join([*row["variants"], *(["weights"] if row["weights"] else [])]) or "nothing to render with"
        holds = "damaged" if row["problem"] else holds
        revision = "packaged" if row["packaged"] else (row["revision"] or "")[:_SHORT]
        table.add_row(row["name"], holds, _megabytes(row["size_bytes"]), revision)
    return table


def show_table(row: dict[str, Any]) -> RenderableType:
    """`shown` for people."""
    facts = Table(box=None, show_header=False)
    came = " at ".join(each for each in (row["repository"], row["revision"]) if each)
    small = f"; small files from {row['original']}" if row["original"] else ""
    tuned = f"{row['tuned']['variant']} on {row['tuned']['compute_unit']}" if row["tuned"] else ""
    for name, value in (
        ("model", row["name"]),
        ("pipeline", row["pipeline"]),
        ("folder", row["path"]),
        ("from", came + small),
        ("MB", _megabytes(row["size_bytes"])),
        ("best here", tuned),
    ):
        if value:
            facts.add_row(name, value)
    parts: list[RenderableType] = [facts]
    for name, variant in row["variants"].items():
        sizes = ", ".join(f"{width}x{height}" for width, height in variant["sizes"])
        table = Table("stage", "MB", "bits", "takes", "gives", box=None, header_style="bold")
        for stage in variant["stages"]:
            bits = "?" if stage["bits"] is None else f"{stage['bits']:g}"
            table.add_row(stage["stage"], _megabytes(stage["size_bytes"]), bits, *_tensors(stage))
        parts += [Text(f"\n {name}: {sizes}"), table]
    if row["weights"]:
        table = Table("stage", "MB", box=None, header_style="bold")
        for name, size in row["weights"].items():
            table.add_row(name, _megabytes(size))
        parts += [Text("\n weights in diffusers' layout"), table]
    return Group(*parts)


def _variant(folder: Path) -> dict[str, Any]:
    manifest = manifests.read(folder)
    return {
        "path": str(folder),
        "sizes": [list(size) for size in manifest.sizes],
        "revision": manifest.revision,
        "stages": [
            {
                "stage": name,
                "files": [info.file for info in stage.packages],
                "size_bytes": stage.size_bytes,
                "bits": stage.bits,
                "inputs": [_tensor(each) for info in stage.packages for each in info.inputs],
                "outputs": [_tensor(each) for info in stage.packages for each in info.outputs],
                "sha256": [info.sha256 for info in stage.packages],
            }
            for name, stage in manifest.stages.items()
        ],
    }


def _tensor(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "dtype": info.dtype, "shapes": [list(shape) for shape in info.shapes]}


def _tensors(stage: dict[str, Any]) -> tuple[str, str]:
    """The default shapes of inputs and outputs. Residuals, of which there are a dozen, are counted."""

    def said(tensors: list[dict[str, Any]]) -> str:
        residuals = [each for each in tensors if each["name"].startswith("additional_residual_")]
        lines = [
            f"{each['name']} {'x'.join(map(str, each['shapes'][0])) if each['shapes'] else ''}".rstrip()
            for each in tensors
            if each not in residuals
        ]
        return "\n".join([*lines, *([f"{len(residuals)} residuals"] if residuals else [])])

    return said(stage["inputs"]), said(stage["outputs"])


def _weights(folder: Path) -> dict[str, int]:
    """Bytes of the safetensors files of each component that has some."""
    sizes = {}
    for component in COMPONENTS:
        files = list((folder / component).glob("*.safetensors"))
        if files:
            sizes[component] = sum(file.stat().st_size for file in files)
    return sizes


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f}"

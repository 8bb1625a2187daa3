"""What a model says of itself, in the manifest's words: a package, a compiled model or an asset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from renderkiln.schema.errors import ModelLoadError

from .base import TensorInfo
from .compiled import Compiled, describe_compiled
from .coreai.asset import Asset
from .coreai.description import bits_per_weight, choose, describe_functions, merge, sizes_of
from .manifest import PackageInfo, open_model
from .mlpackage import Package
from .model_files import ModelFiles


class Interface(NamedTuple):
    """What a model takes and gives."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    #: Of a Core AI asset: the functions that this is said of, one for each size.
    functions: tuple[str, ...] = ()


def interface_of(model: ModelFiles, functions: Sequence[str] = ()) -> Interface:
    """What a model takes and gives, as it says itself; it is not loaded.

    Args:
        functions: those to look at of a Core AI asset; all that rendering uses unless told.

    Raises:
        ModelLoadError: it does not say, is damaged, or has no such function.
    """
    if isinstance(model, Compiled):
        said = describe_compiled(model.path)
        return Interface(said.inputs, said.outputs)
    if isinstance(model, Asset):
        there = describe_functions(model.path)
        names = choose(model.path, there, functions or sizes_of(there))
        merged = merge([there[name] for name in names])
        return Interface(merged.inputs, merged.outputs, names)
    from .reference.interface import features

    assert isinstance(model, Package)
    description = model.read_spec().description
    takes, gives = features(description.input, "input"), features(description.output, "output")
    return Interface(tuple(each.info for each in takes.values()), tuple(each.info for each in gives.values()))


def describe(path: Path, functions: Sequence[str] = ()) -> PackageInfo:
    """What a manifest is to say of a model; reads all of it.

    Args:
        functions: as those of `interface_of`.

    Raises:
        ModelLoadError: as `interface_of`, or it takes or gives nothing.
    """
    model = open_model(path)
    interface = interface_of(model, functions)
    if not interface.inputs or not interface.outputs:
        raise ModelLoadError(f"{path} does not say what it takes and gives")
    return PackageInfo(
        file=path.name,
        size_bytes=model.size,
        sha256=model.sha256(),
        inputs=interface.inputs,
        outputs=interface.outputs,
        functions=interface.functions,
    )


def bits_of(model: ModelFiles) -> float | None:
    """Bits per weight, where a model says. Raises ModelLoadError."""
    if isinstance(model, Compiled):
        return describe_compiled(model.path).bits
    return bits_per_weight(model.path) if isinstance(model, Asset) else None

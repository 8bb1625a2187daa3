"""Has coremltools turn a traced stage into a `.mlpackage`, with Apple's names and types, and cuts one in two."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from renderkiln.schema.errors import ConversionError

from ..runtimes.base import TensorInfo
from ..runtimes.mlpackage import model_proto, open_package
from ..runtimes.reference.interface import features
from .compress.coremltools_quietly import quietly, temporary_files_in
from .plan import StagePlan

model_proto()  # imports coremltools without its advice on standard error
import coremltools as ct  # noqa: E402

#: A disk with fewer bytes free counts as full.
_FULL = 16 << 20
#: What each input and output is, for whoever opens a package in Xcode.
_DESCRIPTIONS = {
    "input_ids": "Token ids of a prompt, as floats",
    "last_hidden_state": "The text encoder's last hidden state",
    "hidden_embeds": "The text encoder's last hidden state but one",
    "pooled_outputs": "The embedding of the whole prompt",
    "sample": "Latents with noise, scaled as the scheduler wants them",
    "timestep": "The scheduler's timestep, once for each of the batch",
    "encoder_hidden_states": "The prompt's embeddings, channels before tokens",
    "time_ids": "Original size, crop and target size, heights before widths",
    "text_embeds": "The second text encoder's pooled output",
    "nlcontextualembeddings_output": "What NLContextualEmbedding gives for a prompt",
    "timestep_cond": "The embedding of the guidance scale",
    "controlnet_cond": "The picture that guides, in [0, 1]",
    "noise_pred": "The noise, or velocity, that the model sees in the sample",
    "z": "Latents, divided by the VAE's scaling factor",
    "image": "The picture, in [-1, 1]",
    "x": "A picture, in [-1, 1]",
    "latent": "Means and log-variances of the latents, before scaling",
    "clip_input": "The picture, resized and normalised for CLIP",
    "images": "The pictures, channels last",
    "adjustment": "Added to the special concepts' scores",
    "filtered_images": "The pictures, black where something was flagged",
    "has_nsfw_concepts": "1 where something was flagged",
    "concept_scores": "Scores of the concepts; above zero is flagged",
}


def trace(stage: torch.nn.Module, plan: StagePlan) -> Any:
    """The stage as TorchScript, traced at its default size."""
    examples = tuple(_example(tensor) for tensor in plan.inputs)
    with warnings.catch_warnings(), torch.no_grad():
        # What depends on Python numbers is fixed by tracing: wanted, as a package has the sizes that it has.
        warnings.simplefilter("ignore")
        return torch.jit.trace(stage, examples, check_trace=False, strict=False)


def write_package(traced: Any, plan: StagePlan, path: Path, *, model: str, version: str) -> None:
    """Converts a trace and writes it. Raises ConversionError, and leaves nothing of use, if that fails."""
    with _coremltools(path.parent, plan.stage):
        converted = ct.convert(
            traced,
            convert_to="mlprogram",
            minimum_deployment_target=getattr(ct.target, plan.target),
            inputs=[_input(tensor) for tensor in plan.inputs],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in plan.outputs],
            compute_precision=ct.precision.FLOAT32 if plan.float32 else ct.precision.FLOAT16,
            compute_units=ct.ComputeUnit.CPU_ONLY,
            skip_model_load=True,
        )
        converted.author = f"See the model card of {model}"
        converted.short_description = f"{plan.stage} of {model}"
        converted.version = version
        converted.user_defined_metadata["renderkiln.settings_digest"] = plan.settings_digest
        described = [(converted.input_description, each.name) for each in plan.inputs]
        described += [(converted.output_description, name) for name in plan.outputs]
        for descriptions, name in described:
            descriptions[name] = _DESCRIPTIONS.get(name, "What a ControlNet adds to the UNet")
        converted.save(str(path))
    open_package(path)


def bisect(package: Path, targets: tuple[Path, Path], stage: str) -> None:
    """Cuts a package into two of about the same size, whose second takes what the first gives."""
    folder = package.parent / "chunks"
    with _coremltools(package.parent, stage):
        ct.models.utils.bisect_model(str(package), str(folder), check_output_correctness=False)
        for number, target in enumerate(targets, start=1):
            (folder / f"{package.stem}_chunk{number}.mlpackage").replace(target)


def read_interface(package: Path) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs as the package's own spec declares them."""
    description = open_package(package).read_spec().description
    inputs, outputs = features(description.input, "input"), features(description.output, "output")
    return tuple(each.info for each in inputs.values()), tuple(each.info for each in outputs.values())


def _example(tensor: TensorInfo) -> torch.Tensor:
    shape = tensor.shapes[0]
    if tensor.name == "input_ids":
        return torch.zeros(shape, dtype=torch.int32)
    return torch.full(shape, 500.0) if tensor.name == "timestep" else torch.rand(shape)


def _input(tensor: TensorInfo) -> Any:
    several = len(tensor.shapes) > 1
    shape = ct.EnumeratedShapes(list(tensor.shapes), default=tensor.shapes[0]) if several else tensor.shapes[0]
    return ct.TensorType(name=tensor.name, shape=shape, dtype=np.dtype(tensor.dtype).type)


@contextmanager
def _coremltools(folder: Path, stage: str) -> Iterator[None]:
    """Temporary files beside the target, no progress bars of its own, and its errors as ours."""
    with quietly(), temporary_files_in(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except OSError as error:
            raise ConversionError(f"{stage}: cannot be written: {error.strerror or error}") from error
        except MemoryError:
            raise
        except Exception as error:
            if shutil.disk_usage(folder).free < _FULL:
                # What writes the weights says of a full disk no more than that it could not write.
                raise ConversionError(f"{stage}: the disk is full") from error
            raise ConversionError(f"{stage}: coremltools could not convert it: {error}") from error

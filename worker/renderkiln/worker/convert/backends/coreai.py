"""Core AI: exports a stage with torch.export and has Apple's converter write an `.aimodel`. A `Backend`."""

from __future__ import annotations

import gc
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from coreai.authoring import AIModelAsset
from coreai.runtime import AIModelAssetMetadata

from renderkiln.schema.errors import ConversionError

from ...runtimes.base import Runtime
from ...runtimes.coreai.asset import open_asset
from ...runtimes.coreai.description import bits_per_weight, choose, describe_functions
from ...runtimes.coreai.runtime import CoreAIRuntime
from ...runtimes.coreai.system import INSTALL, on_all_units
from ..plan import StagePlan
from . import Tell
from .failures import errors_of, reading_back
from .tensors import example

with warnings.catch_warnings():
    # It takes the CPU's build of a torch that it knows, 2.13.0+cpu, for a later one.
    warnings.filterwarnings("ignore", "coreai-torch has only been validated", UserWarning)
    import coreai_torch

#: Apple's preset for diffusion models (`4bit` of coreai.diffusion.export): symmetric, a scale for each 32 weights of a
#: row, and only where there are this many weights.
BLOCK, WORTH_IT = 32, 32768
_CONVERTER = "Core AI's converter"
#: What the interpreter gets through in minutes. A demo model is far below it, Stable Diffusion's stages are far above.
_SMALL = 64 << 20


def write(stage: torch.nn.Module, plan: StagePlan, path: Path, *, model: str, version: str, tell: Tell) -> None:
    """See `Backend.write`: one function for each size, over the same weights."""
    dtype = torch.float32 if plan.float32 else torch.float16
    stage = stage.to(dtype)
    table = coreai_torch.get_decomp_table()
    table[torch.ops.aten.upsample_nearest2d.vec] = _repeat_pixels
    with errors_of(_CONVERTER, plan.stage, path.parent):
        converter = coreai_torch.TorchConverter(mode=coreai_torch.TorchConverter.Mode.RELEASE)
        for number, function in enumerate(plan.functions):
            tell("tracing", number, len(plan.functions))
            examples = tuple(example(tensor, number, dtype) for tensor in plan.inputs)
            program = torch.export.export(stage, examples).run_decompositions(table)
            converter.add_exported_program(
                program,
                input_names=[tensor.name for tensor in plan.inputs],
                output_names=list(plan.outputs),
                entrypoint_name=function,
            )
        tell("converting")
        converter.to_coreai().save_asset(path, _metadata(plan, model, version))
    del converter, program
    gc.collect()


def look_whole(plan: StagePlan, path: Path) -> bool:
    """See `Backend.look_whole`; what is too small for fewer bits is left as it is, weight by weight."""
    with reading_back(plan.stage):
        open_asset(path).check_hash()
        choose(path, describe_functions(path), plan.functions)
    return plan.nbits is not None


def compress(plan: StagePlan, recipe: Path | None, dense: Path, target: Path, tell: Tell) -> float:
    """See `Backend.compress`: whole numbers of 4 bits."""
    tell("compressing")
    try:
        from coreai_opt.coreai_utils import CompressionGranularity, DType, QScheme, quantize_weights
    except ImportError as error:
        raise ConversionError(f"--nbits needs coreai-opt ({error}): {INSTALL}") from error
    # It says of each weight whose rows do not divide into blocks that it stays as it is.
    logging.getLogger("coreai_opt").setLevel(logging.ERROR)
    with errors_of(_CONVERTER, plan.stage, target.parent):
        asset = AIModelAsset.load(dense)
        program = quantize_weights(
            asset.program,
            dtype=DType.INT4,
            qscheme=QScheme.SYMMETRIC,
            granularity=CompressionGranularity.PER_BLOCK,
            block_size=BLOCK,
            weight_num_threshold=WORTH_IT,
            in_place=True,
        )
        program.save_asset(target, asset.metadata)
    look_whole(plan, target)
    bits = bits_per_weight(target)
    assert bits is not None
    return bits


def cut(plan: StagePlan, whole: Path, targets: tuple[Path, Path]) -> None:
    """Options are checked before: Core AI's stages are in one piece."""
    raise ConversionError(f"{plan.stage}: a Core AI asset cannot be cut in two")


def open(plan: StagePlan, path: Path) -> Runtime:
    """See `Backend.open`: on macOS 27 Core AI itself, on the CPU; elsewhere its interpreter."""
    return CoreAIRuntime.load(path, compute_unit="reference", functions=plan.functions)


def checks_in_time(size_bytes: int) -> bool:
    """See `Backend.checks_in_time`."""
    return on_all_units() or size_bytes <= _SMALL


def _repeat_pixels(
    pixels: torch.Tensor, output_size: list[int] | None, scale_factors: list[float] | None
) -> torch.Tensor:
    """Nearest-neighbour enlargement by whole factors as a broadcast: (B, C, H, W) to (B, C, a·H, b·W).

    Apple's exporter avoids Core AI's own operation for this, too: the GPU does not take it, and each would be a way to
    the CPU and back.
    """
    batch, channels, height, width = pixels.shape
    if scale_factors is not None:
        down, right = (int(factor) for factor in scale_factors)
        whole = (down, right) == tuple(scale_factors)
    else:
        assert output_size is not None
        (down, rest_down), (right, rest_right) = divmod(output_size[0], height), divmod(output_size[1], width)
        whole = not rest_down and not rest_right
    if not whole:
        raise ConversionError(f"enlarging {height}x{width} by parts of a pixel cannot be converted; take another size")
    spread = pixels[:, :, :, None, :, None].expand(batch, channels, height, down, width, right)
    return spread.reshape(batch, channels, height * down, width * right)


def _metadata(plan: StagePlan, model: str, version: str) -> Any:
    metadata = AIModelAssetMetadata()
    metadata.author = f"See the model card of {model}"
    metadata.model_description = f"{plan.stage} of {model}{f', {version}' if version else ''}"
    metadata.set_custom("renderkiln.settings_digest", plan.settings_digest)
    return metadata

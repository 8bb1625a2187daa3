"""Loads torch modules so that memory peaks at little more than what the module holds.

The libraries' own `from_pretrained` maps a file whole while it makes converted copies of its tensors, and, without
accelerate, fills the module with random numbers first: two to three times the module. They also set torch's default
precision for the whole process meanwhile. Here a module is built without memory for its tensors, and these are read
one after another into where they stay.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode

from renderkiln.schema.errors import ModelLoadError

from ..models.weights import Weights, read_json
from .libraries import diffusers, transformers

#: The classes that a component may be of, by the name that model_index.json gives.
CLASSES: dict[str, Any] = {
    "AutoencoderKL": diffusers.AutoencoderKL,
    "CLIPTextModel": transformers.CLIPTextModel,
    "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
    "StableDiffusionSafetyChecker": diffusers.pipelines.stable_diffusion.StableDiffusionSafetyChecker,
    "ControlNetModel": diffusers.ControlNetModel,
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
}
#: Values that are read at once: 16 MB of float32. A vocabulary alone may have 250 MB.
_PIECE_VALUES = 2**22
#: Values after which a file is opened anew, 64 MB of float32: what was read of it is the process's memory until then.
_MAPPED_VALUES = 2**24
#: Values that are converted at once: they stay in the cache of a core meanwhile.
_BLOCK_VALUES = 2**18
#: What only reserves memory, or fills it with what a file's tensors replace.
_FILLERS = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}
#: What makes values that a module needs and its file does not hold: position ids, the kernels of K-diffusion's blocks.
_MAKERS = {torch.tensor, torch.arange, torch.linspace, torch.full, torch.eye}


class _Piece(NamedTuple):
    """Some rows of a tensor, or all of it."""

    #: What the module calls the tensor.
    name: str
    #: What the file calls it.
    stored: str
    #: Number of values.
    values: int
    #: Of the first dimension; None: all.
    rows: slice | None


def load_module(
    class_name: str,
    folder: Path,
    weights: Weights,
    dtype: torch.dtype,
    device: torch.device,
    without: Iterable[str] = (),
) -> torch.nn.Module:
    """A component of a model, ready to be called: to the bit what `from_pretrained(dtype=…)` gives.

    Memory peaks at what the module holds and at most 150 MB. Tensors go straight to the device, and nothing changes for
    other threads meanwhile.

    Args:
        class_name: one of `CLASSES`.
        folder: the component's, which holds its config.json.
        weights: its files.
        without: attributes that are not needed, like the `encoder` of a VAE that only decodes. They become None, and
            their tensors are not read.

    Raises:
        ModelLoadError: the weights do not fit the config. Whatever else the libraries raise passes through.
    """
    if read_json(folder / "config.json").get("quantization_config"):
        raise ModelLoadError(f"{folder} holds quantized weights, which are not read; get the model in 16 or 32 bits")
    module = _build(CLASSES[class_name], folder, dtype)
    for part in without:
        setattr(module, part, None)
    wanted = module.state_dict(keep_vars=True)
    made: dict[str, torch.Tensor] = {}
    for path in weights.paths:
        _read(path, module, wanted, made, _kept_in_float32(module, dtype), device)
    # Both libraries would fill what a file lacks with random numbers, and go on.
    missing = sorted({*(wanted.keys() - made.keys()), *_without_memory(module)})
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelLoadError(f"the weights in {folder} lack {shown}: the model is not complete")
    return module.to(device).eval()


def _build(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The module, in training mode; its tensors have shape and precision, but no memory."""
    if issubclass(kind, transformers.PreTrainedModel):
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        config.name_or_path = str(folder)
        # A vision or text config inside is read by the module that it describes.
        for each in (config, *(getattr(config, name) for name in config.sub_configs)):
            each.dtype = dtype
        with _Blueprint(dtype):
            return kind(config)
    settings = kind.load_config(folder, local_files_only=True)
    with _Blueprint(dtype):
        module = kind.from_config(settings)
    module.register_to_config(_name_or_path=folder)
    return module


class _Blueprint(TorchFunctionMode):  # type: ignore[misc]
    """Has this thread make tensors without memory, and floats of one precision.

    `torch.device("meta")` would also take the values from what is computed rather than read, and
    `torch.set_default_dtype` would reach into other threads.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _FILLERS and func not in _MAKERS:
            return func(*args, **kwargs)
        # With a tensor of an empty list transformers asks where modules are being built; on "meta" it draws no numbers.
        is_question = func is torch.tensor and isinstance(args[0] if args else None, list) and not args[0]
        if (func in _FILLERS or is_question) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        made = func(*args, **kwargs)
        by_default = kwargs.get("dtype") is None and made.dtype == torch.get_default_dtype()
        return made.to(self._dtype) if by_default else made


def _kept_in_float32(module: Any, dtype: torch.dtype) -> frozenset[str]:
    """Names of parts that a class does not want in half precision; none of today's classes has any."""
    if not isinstance(module, transformers.PreTrainedModel):
        return frozenset(module._keep_in_fp32_modules or ())
    strictly = module._keep_in_fp32_modules_strict if dtype.itemsize < 4 else None
    mostly = module._keep_in_fp32_modules if dtype == torch.float16 else None
    return frozenset((*(strictly or ()), *(mostly or ())))


def _read(
    path: Path,
    module: torch.nn.Module,
    wanted: Mapping[str, torch.Tensor],
    made: dict[str, torch.Tensor],
    float32: frozenset[str],
    device: torch.device,
) -> None:
    """Reads what the module wants of a file, into new tensors on the device, which it adds to those made.

    Raises:
        ModelLoadError: a tensor is of another shape or kind.
    """
    pieces = deque(_pieces(path, module, wanted))
    while pieces:
        with safe_open(path, framework="pt") as file:
            mapped = 0
            while pieces and mapped < _MAPPED_VALUES:
                piece = pieces.popleft()
                if piece.name not in made:
                    like = wanted[piece.name]
                    dtype = torch.float32 if float32.intersection(piece.name.split(".")) else like.dtype
                    made[piece.name] = _replace(module, piece.name, torch.empty(like.shape, dtype=dtype, device=device))
                _copy(file, piece, made[piece.name])
                mapped += piece.values


def _pieces(path: Path, module: torch.nn.Module, wanted: Mapping[str, torch.Tensor]) -> Iterator[_Piece]:
    """What is to be read of a file. Raises ModelLoadError: a tensor is of another shape or kind."""
    with safe_open(path, framework="pt") as file:
        for name, stored in _names(module, wanted, file.keys()).items():
            tensor = file.get_slice(stored)
            shape, like = tuple(tensor.get_shape()), wanted[name]
            fault = None
            if shape != tuple(like.shape):
                fault = f"is of shape {shape}, and its config asks for {tuple(like.shape)}"
            elif tensor.get_dtype().startswith(("F", "BF")) != like.is_floating_point():
                fault = f"holds {tensor.get_dtype()}"
            if fault:
                kind = type(module).__name__
                raise ModelLoadError(f"{path.parent} cannot be loaded as {kind}: {stored} in {path.name} {fault}")
            values = math.prod(shape)
            if values <= _PIECE_VALUES:
                yield _Piece(name, stored, values, None)
                continue
            row = values // shape[0]
            step = max(1, _PIECE_VALUES // row)
            for start in range(0, shape[0], step):
                stop = min(start + step, shape[0])
                yield _Piece(name, stored, (stop - start) * row, slice(start, stop))


def _names(module: Any, wanted: Mapping[str, torch.Tensor], stored: Iterable[str]) -> dict[str, str]:
    """Names of the module's tensors, each with what a file calls the tensor.

    Checkpoints are older than the libraries. diffusers renames the attention of old VAEs by
    `ModelMixin._fix_state_dict_keys_on_load`; transformers has a list for each class (CLIP's lost a `text_model.` or
    `vision_model.`), which `get_model_conversion_mapping` gives, as to peft, and `rename_source_key` applies.
    """
    names = {name: name for name in stored}
    if isinstance(module, diffusers.ModelMixin):
        module._fix_state_dict_keys_on_load(names)
    else:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        renamings = [each for each in get_model_conversion_mapping(module) if isinstance(each, WeightRenaming)]
        prefix = module.base_model_prefix
        renamed = {name: rename_source_key(name, renamings, [], prefix, wanted)[0] for name in names}
        names = {name if name in wanted and new not in wanted else new: name for name, new in renamed.items()}
    # What is left was of use to somebody else, like the position ids of old text encoders.
    return {name: old for name, old in names.items() if name in wanted}


def _replace(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Puts a tensor into the module, as a parameter or buffer; gives it back."""
    path, _, attribute = name.rpartition(".")
    owner = module.get_submodule(path)
    is_buffer = attribute in owner._buffers
    setattr(owner, attribute, tensor if is_buffer else torch.nn.Parameter(tensor, requires_grad=False))
    return tensor


def _copy(file: Any, piece: _Piece, target: torch.Tensor) -> None:
    """Reads a piece of a tensor into its place, and keeps nothing of the file."""
    if piece.rows is None:
        values = file.get_tensor(piece.stored)
    else:
        values, target = file.get_slice(piece.stored)[piece.rows], target[piece.rows]
    if target.device.type != "cpu":
        target.copy_(values.to(target.dtype))  # the CPU rounds, on every device, as it would for `from_pretrained`
    elif (values.dtype, target.dtype) == (torch.float16, torch.bfloat16):
        _copy_through_float32(values.reshape(-1), target.view(-1))
    else:
        target.copy_(values)


def _copy_through_float32(values: torch.Tensor, target: torch.Tensor) -> None:
    """As `target.copy_(values)`, to the bit, in a quarter of the time: torch itself goes value by value."""
    between = torch.empty(min(len(values), _BLOCK_VALUES), dtype=torch.float32)
    for some, into in zip(values.split(_BLOCK_VALUES), target.split(_BLOCK_VALUES), strict=True):
        part = between[: len(some)]
        part.copy_(some)
        into.copy_(part)


def _without_memory(module: torch.nn.Module) -> Iterator[str]:
    """Names of the tensors that still have none."""
    for named in (module.named_parameters(), module.named_buffers()):
        yield from (name for name, tensor in named if tensor.is_meta)

"""What rendering a model takes of memory: from its small files and what was measured before. Loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from renderkiln.home.memory_records import StageCost as MeasuredCost
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import BadInputError, ModelLoadError, RenderkilnError

from ..memory.planning import Rule, StageCost, StageKey, foresee
from ..memory.sizes import EMPTY_RENDERER, LOAD_RATE, RENDERER, expected_working
from ..runtimes import manifest
from ..runtimes.apple.system import on_macos
from ..runtimes.naming import PROJECTION
from .choosing import Form, Wishes, is_converted_only, pick_form, this_system
from .layout import COREAI, variants
from .weights import VAE_HALVES, find_weights, read_json

_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
#: What text-to-image puts to work, in that order; as far as a model has it.
_ORDER = (PROJECTION, *_TEXT_ENCODERS, "unet", "control-unet", "vae_decoder", "safety_checker")
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: What diffusers takes where the config of a VAE does not say at what size it was trained.
_VAE_SIZE = 32


@dataclass(frozen=True)
class ModelCosts:
    """What the stages of a model take that text-to-image puts to work, in its order, for one image of a size."""

    stages: tuple[StageCost, ...]
    #: Width and height, in pixels.
    size: tuple[int, int]
    #: The stages of which the working set was measured, and is not an estimate.
    measured: frozenset[str] = frozenset()
    #: The same of the time that a load takes.
    timed: frozenset[str] = frozenset()
    #: The pixels that a VAE works on at once in tiles; None where it cannot, as it is converted.
    tile_pixels: int | None = None
    #: What the renderer holds beside its stages, and whether that was measured.
    renderer_bytes: int = EMPTY_RENDERER
    is_renderer_measured: bool = False

    @property
    def least_bytes(self) -> int:
        """What the renderer takes at least: one stage at a time, and pictures decoded in tiles where that can be."""
        return max(map(self.least_of, self.stages), default=self.renderer_bytes)

    def least_of(self, stage: StageCost) -> int:
        """What the renderer takes at least while one stage is at work."""
        return self.renderer_bytes + stage.size_bytes + self.tiled.get(stage.key, stage.working_bytes)

    @property
    def tiled(self) -> Mapping[StageKey, int]:
        """The working sets, in bytes, of those stages that can work in tiles, when they do."""
        if self.tile_pixels is None:
            return {}
        part = min(1.0, self.tile_pixels / (self.size[0] * self.size[1]))
        return {each.key: int(each.working_bytes * part) for each in self.stages if each.key.stage in VAE_HALVES}

    @property
    def resident_bytes(self) -> int:
        """What it takes with every stage in memory."""
        return foresee(self.stages, Rule("resident"), self.renderer_bytes).peak_bytes


def torch_dtype(settings: Settings) -> str:
    """In which precision the torch engine would hold a model, as far as that can be said without asking torch."""
    if settings.dtype != "auto":
        return settings.dtype
    on_accelerator = settings.device in ("mps", "cuda") or (settings.device == "auto" and on_macos())
    return "float16" if on_accelerator else "float32"


def model_costs(
    model: str,
    folder: Path,
    form: Form | None,
    dtype: str,
    known: Mapping[str, MeasuredCost] | None = None,
    size: tuple[int, int] | None = None,
) -> ModelCosts:
    """What a model takes. Of a converted one, what its manifest says counts; its packages are not looked at.

    Args:
        form: None where torch renders it.
        dtype: of torch's stages: float32, float16 or bfloat16.
        known: what was measured on this machine, by stage; the renderer itself as `RENDERER`.
        size: width and height in pixels; the model's own unless told.

    Raises:
        ModelLoadError: the folder is not complete, or not one of a model.
        BadInputError: the model cannot be rendered in that size.
    """
    if form is None and is_converted_only(folder):
        raise ModelLoadError(f"{model} is converted, and has no weights for torch: use the coreml or coreai engine")
    if form is None:
        size, tile = _torch_size(model, folder, size)
        sizes = _torch_sizes(folder, dtype)
    else:
        converted = manifest.read(form.folder)
        size, tile = _converted_size(model, converted, size), None
        sizes = {name: info.size_bytes for name, info in converted.stages.items()}
    sizes = _at_work(model, folder, sizes)
    pixels = size[0] * size[1]
    stages, measured, timed = [], set(), set()
    for stage, size_bytes in sizes.items():
        found = (known or {}).get(stage)
        if found is not None and found.pixels > 0:
            measured.add(stage)
            working = int(found.working_bytes * max(1.0, pixels / found.pixels))
        else:
            working = expected_working(stage, size_bytes, pixels)
        if found is not None and found.load_seconds > 0:
            timed.add(stage)
            seconds = found.load_seconds
        else:
            seconds = size_bytes / LOAD_RATE
        # A text encoder is needed for the first job; the prompts of the next ones are encoded with it.
        uses = 0.0 if stage in _TEXT_ENCODERS else 1.0
        stages.append(StageCost(StageKey(model, stage), size_bytes, working, seconds, uses))
    renderer = (known or {}).get(RENDERER)
    return ModelCosts(
        tuple(stages),
        size,
        frozenset(measured),
        frozenset(timed),
        tile,
        EMPTY_RENDERER if renderer is None else renderer.size_bytes,
        renderer is not None,
    )


def smaller_forms(model: str, folder: Path, limit_bytes: int, size: tuple[int, int] | None = None) -> list[str]:
    """The variants of a model that would fit, the one that takes least first; none that does not run here.

    Raises:
        ModelLoadError: the folder is not one of a model.
    """
    found = []
    for name, below in variants(folder).items():
        if name == COREAI and this_system().no_coreai is not None:
            continue
        try:
            costs = model_costs(model, folder, Form(name, below, "reference"), "float16", size=size)
        except BadInputError:  # it was converted for other sizes
            continue
        if costs.least_bytes <= limit_bytes:
            found.append((costs.least_bytes, name))
    return [name for _, name in sorted(found)]


def why_too_large(
    model: str, folder: Path, settings: Settings, limit_bytes: int, tuned: tuple[str, str] | None = None
) -> str | None:
    """Why a model cannot be rendered in so much memory, and what could be; None if it can, or cannot be told.

    Args:
        tuned: the variant and the compute unit that were measured to be best here.
    """
    try:
        form = pick_form(folder, Wishes(settings.engine, settings.compute_unit, settings.variant), tuned)
        costs = model_costs(model, folder, form, torch_dtype(settings))
        smaller = [] if costs.least_bytes <= limit_bytes else smaller_forms(model, folder, limit_bytes)
    except RenderkilnError:
        return None  # what is wrong with it will be said when it is rendered
    return too_large(model, costs, limit_bytes, smaller)


def too_large(model: str, costs: ModelCosts, limit_bytes: int, smaller: list[str]) -> str | None:
    """What is said of a model that cannot be rendered in so much memory; None if it can.

    Args:
        smaller: what `smaller_forms` found.
    """
    if costs.least_bytes <= limit_bytes:
        return None
    limit = f"and there are {limit_bytes / 1e6:,.0f} MB"
    largest = max(costs.stages, key=costs.least_of, default=None)
    if largest is None or costs.renderer_bytes >= limit_bytes:
        taken = f"the renderer alone takes {costs.renderer_bytes / 1e6:,.0f} MB"
        return f"{model} does not fit: {taken} before it has loaded anything, {limit}. Take another --memory-budget."
    said = (
        f"{model} does not fit: its {largest.key.stage} alone takes {costs.least_bytes / 1e6:,.0f} MB with the "
        f"renderer around it, {limit}."
    )
    if smaller:
        flags = "--engine coreai" if smaller[0] == COREAI else f"--engine coreml --variant {smaller[0]}"
        return f"{said} Its variant {smaller[0]} would fit ({flags})."
    if largest.size_bytes < costs.tiled.get(largest.key, largest.working_bytes):
        return f"{said} Take another --memory-budget, or a smaller picture."
    advice = "`renderkiln convert` and then `renderkiln compress --nbits 6` make a smaller one"
    return f"{said} Take a smaller model, or another --memory-budget; {advice}."


def _at_work(model: str, folder: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Of the stages that there are, those that text-to-image puts to work, in its order.

    Raises:
        ModelLoadError: one is missing without which nothing can be rendered.
    """
    there = dict(sizes)
    if PROJECTION in there:  # the system's text encoder reads the prompts, and the model's is of no use
        for name in _TEXT_ENCODERS:
            there.pop(name, None)
    if "unet" in there:
        there.pop("control-unet", None)
    if not _is_class(read_json(folder / "model_index.json").get("safety_checker")):
        there.pop("safety_checker", None)  # converted, perhaps, but nothing asks it
    for needed in ((PROJECTION, *_TEXT_ENCODERS), ("unet", "control-unet"), ("vae_decoder",)):
        if not any(name in there for name in needed):
            raise ModelLoadError(f"{model} has no {needed[-1] if len(needed) == 1 else needed[-2]}: it is not complete")
    return {name: there[name] for name in _ORDER if name in there}


def _is_class(entry: object) -> bool:
    """Whether an entry of model_index.json names the class of a component that the model has."""
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)


def _torch_sizes(folder: Path, dtype: str) -> dict[str, int]:
    index = read_json(folder / "model_index.json")
    sizes = {}
    for stage in _ORDER:
        component = "vae" if stage in VAE_HALVES else stage
        if not _is_class(index.get(component)):
            continue
        precision = dtype
        if component == "vae" and dtype == "float16" and (folder / "text_encoder_2").is_dir():
            # As the engine holds it: SDXL's overflows in half precision.
            upcast = read_json(folder / "vae" / "config.json").get("force_upcast", True)
            precision = "float32" if upcast else dtype
        value_bytes = _VALUE_BYTES[precision]
        weights = find_weights(folder / component, half=value_bytes < 4)
        sizes[stage] = weights.size_bytes(value_bytes, VAE_HALVES.get(stage, ("",)))
    return sizes


def _torch_size(model: str, folder: Path, wished: tuple[int, int] | None) -> tuple[tuple[int, int], int]:
    """The size of the image, and how many pixels of it are decoded at once in tiles."""
    vae = read_json(folder / "vae" / "config.json")
    blocks = vae.get("block_out_channels") or [0] * 4
    if not isinstance(blocks, list):
        raise ModelLoadError(f"{folder / 'vae' / 'config.json'}: block_out_channels is no list")
    scale = 2 ** (len(blocks) - 1)
    if wished is None:
        height, width = _pair(read_json(folder / "unet" / "config.json").get("sample_size") or 64, folder / "unet")
        size = width * scale, height * scale
    else:
        unit = max(8, scale)
        if wished[0] % unit or wished[1] % unit:
            raise BadInputError(f"{wished[0]}x{wished[1]} does not fit {model}: sides must be multiples of {unit}")
        size = wished
    # Half the size that the VAE was trained at; see `engine/decoding.py`.
    side = min(_pair(vae.get("sample_size") or _VAE_SIZE, folder / "vae")) // 2
    return size, min(size[0], side) * min(size[1], side)


def _converted_size(model: str, converted: manifest.Manifest, wished: tuple[int, int] | None) -> tuple[int, int]:
    if wished is not None and wished not in converted.sizes:
        there = ", ".join(f"{width}x{height}" for width, height in converted.sizes)
        raise BadInputError(
            f"{wished[0]}x{wished[1]}: {model} was converted for {there} as {converted.variant}, and has no other size"
        )
    return wished or converted.sizes[0]


def _pair(value: Any, component: Path) -> tuple[int, int]:
    """A `sample_size`: one number for both sides, or height and width. Raises ModelLoadError."""
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(isinstance(each, int) and each > 0 for each in pair):
        raise ModelLoadError(f"{component / 'config.json'}: sample_size is {value!r}, which is no size")
    return pair[0], pair[1]

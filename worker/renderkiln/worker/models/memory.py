"""What rendering a model takes of memory: from its small files and what was measured before. Loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from renderkiln.home.memory_records import StageCost as MeasuredCost
from renderkiln.home.settings import Settings
from renderkiln.schema.errors import RenderkilnError

from ..memory.planning import Rule, StageCost, StageKey, foresee
from ..memory.sizes import EMPTY_RENDERER, LOAD_RATE, expected_working
from ..runtimes import manifest
from ..runtimes.apple.system import on_macos
from ..runtimes.naming import PROJECTION
from .choosing import Form, Wishes, pick_form
from .layout import variants
from .weights import VAE_HALVES, find_weights, read_json

#: What text-to-image puts to work, in that order; as far as a model has it.
_ORDER = (PROJECTION, "text_encoder", "text_encoder_2", "unet", "control-unet", "vae_decoder", "safety_checker")
#: What is left of a VAE's working set when it works in tiles of half the side.
_IN_TILES = 0.25
_VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class ModelCosts:
    """What the stages of a model take that text-to-image puts to work, in its order, at the model's own size."""

    stages: tuple[StageCost, ...]
    #: Width and height, in pixels.
    size: tuple[int, int]
    #: The stages of which working set and load time were measured, and are not an estimate.
    measured: frozenset[str]

    @property
    def least_bytes(self) -> int:
        """What the renderer takes at least: one stage at a time, and pictures decoded in tiles."""
        return EMPTY_RENDERER + max((_least(each) for each in self.stages), default=0)

    def least_of(self, stage: StageCost) -> int:
        """What the renderer takes at least while one stage is at work."""
        return EMPTY_RENDERER + _least(stage)

    @property
    def resident_bytes(self) -> int:
        """What it takes with every stage in memory."""
        return foresee(self.stages, Rule("resident"), EMPTY_RENDERER).peak_bytes


def torch_value_bytes(settings: Settings) -> int:
    """Bytes of a value as the torch engine would hold it, as far as that can be said without asking torch."""
    if settings.dtype != "auto":
        return _VALUE_BYTES[settings.dtype]
    on_accelerator = settings.device in ("mps", "cuda") or (settings.device == "auto" and on_macos())
    return 2 if on_accelerator else 4


def model_costs(
    model: str, folder: Path, form: Form | None, value_bytes: int, known: Mapping[str, MeasuredCost] | None = None
) -> ModelCosts:
    """What a model takes.

    Args:
        form: None where torch renders it.
        value_bytes: of a value in torch's stages.
        known: what was measured on this machine, by stage.

    Raises:
        ModelLoadError: the folder is not complete, or not one of a model.
    """
    size = _native_size(folder)
    pixels = size[0] * size[1]
    sizes = _torch_sizes(folder, value_bytes) if form is None else _converted_sizes(form)
    stages, measured = [], set()
    for stage in _ORDER:
        if stage not in sizes or (stage == "control-unet" and "unet" in sizes):
            continue
        found = (known or {}).get(stage)
        # A text encoder is needed for the first job; the prompts of the next ones are encoded with it.
        uses = 0.0 if stage.startswith("text_encoder") else 1.0
        if found is not None and found.pixels:
            measured.add(stage)
            working = int(found.working_bytes * max(1.0, pixels / found.pixels))
            load_seconds = found.load_seconds
        else:
            working = expected_working(stage, sizes[stage], pixels)
            load_seconds = sizes[stage] / LOAD_RATE
        stages.append(StageCost(StageKey(model, stage), sizes[stage], working, load_seconds, uses))
    return ModelCosts(tuple(stages), size, frozenset(measured))


def smaller_forms(model: str, folder: Path, limit_bytes: int) -> list[str]:
    """The variants of a model that would fit, the smallest first."""
    found = []
    for name, below in variants(folder).items():
        costs = model_costs(model, folder, Form(name, below, "reference"), 2)
        if costs.least_bytes <= limit_bytes:
            found.append((costs.least_bytes, name))
    return [name for _, name in sorted(found)]


def why_too_large(model: str, folder: Path, settings: Settings, limit_bytes: int) -> str | None:
    """Why a model cannot be rendered in so much memory, and what could be; None if it can, or cannot be told."""
    try:
        form = pick_form(folder, Wishes(settings.engine, settings.compute_unit, settings.variant))
        costs = model_costs(model, folder, form, torch_value_bytes(settings))
        if costs.least_bytes <= limit_bytes:
            return None
        smaller = smaller_forms(model, folder, limit_bytes)
    except RenderkilnError:
        return None  # what is wrong with it will be said when it is rendered
    largest = max(costs.stages, key=_least)
    said = (
        f"{model} does not fit: its {largest.key.stage} alone takes {costs.least_of(largest) / 1e9:.1f} GB with the "
        f"renderer around it, and there are {limit_bytes / 1e9:.1f} GB."
    )
    if smaller:
        return f"{said} Its variant {smaller[0]} would fit (--variant {smaller[0]})."
    advice = "`renderkiln convert` and then `renderkiln compress --nbits 6` make a smaller one"
    return f"{said} Take a smaller model, or another --memory-budget; {advice}."


def _least(stage: StageCost) -> int:
    return stage.size_bytes + int(stage.working_bytes * (_IN_TILES if stage.key.stage in VAE_HALVES else 1))


def _native_size(folder: Path) -> tuple[int, int]:
    size = read_json(folder / "unet" / "config.json").get("sample_size") or 64
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    blocks: Sequence[object] = read_json(folder / "vae" / "config.json").get("block_out_channels") or [0] * 4
    scale = 2 ** (len(blocks) - 1)
    return width * scale, height * scale


def _torch_sizes(folder: Path, value_bytes: int) -> dict[str, int]:
    index = read_json(folder / "model_index.json")
    sizes = {}
    for stage in _ORDER:
        component = "vae" if stage in VAE_HALVES else stage
        entry = index.get(component)
        if not isinstance(entry, list) or not entry or entry[0] is None:
            continue
        prefixes = VAE_HALVES.get(stage, ("",))
        sizes[stage] = find_weights(folder / component, half=value_bytes < 4).size_bytes(value_bytes, prefixes)
    return sizes


def _converted_sizes(form: Form) -> dict[str, int]:
    return {name: info.size_bytes for name, info in manifest.read(form.folder).stages.items()}

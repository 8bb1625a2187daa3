"""What a model takes of memory, from its small files: as the engine finds it, and what is said where it is too much."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.models import save_sd, save_sdxl

from renderkiln.home.memory_records import StageCost as MeasuredCost
from renderkiln.home.settings import load
from renderkiln.schema import JobOptions, RenderSpec, make_job
from renderkiln.schema.errors import BadInputError, ModelLoadError
from renderkiln.worker.demo import shapes_path
from renderkiln.worker.engine.pipelines import Pipelines
from renderkiln.worker.engine.requests import check
from renderkiln.worker.engine.torch_stages import TorchModelStages, TorchOptions
from renderkiln.worker.memory.residency import Residency
from renderkiln.worker.memory.sizes import EMPTY_RENDERER, LOAD_RATE, expected_working
from renderkiln.worker.models import memory
from renderkiln.worker.models.choosing import Form, System
from renderkiln.worker.models.memory import (
    ModelCosts,
    model_costs,
    smaller_forms,
    too_large,
    torch_dtype,
    why_too_large,
)

from .made import SD15, converted, small_files, torch_model, write_json

MB, GB = 10**6, 10**9
#: Bytes of converted stages.
STAGES = {"text_encoder": 246 * MB, "unet": 1_720 * MB, "vae_decoder": 99 * MB}


def original(folder: Path) -> Form:
    return Form("original", folder, "reference")


def sizes_of(costs: ModelCosts) -> dict[str, int]:
    return {each.key.stage: each.size_bytes for each in costs.stages}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models with weights."""
    folder = tmp_path_factory.mktemp("real")
    save_sd(folder / "checked", threshold=0.99)
    save_sdxl(folder / "xl")
    (folder / "shapes").symlink_to(shapes_path())
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["checked", "xl", "shapes"])
def test_stages_and_sizes_are_those_that_the_engine_finds(real: Path, name: str, dtype: str) -> None:
    residency = Residency()
    options = TorchOptions(getattr(torch, dtype), torch.device("cpu"))
    stages = TorchModelStages(real / name, options, lambda _: real)
    pipelines = Pipelines(name, real / name, stages, residency, lambda _: None)
    request = check(make_job(RenderSpec(prompt="a", model=name), JobOptions(), batch="b", index=0), pipelines, {})
    residency.begin_job(request.order, request.pixels)

    costs = model_costs(name, real / name, None, dtype)
    assert costs.size == request.size
    assert [(each.key, each.size_bytes, each.working_bytes, each.load_seconds) for each in costs.stages] == [
        (each.key, each.size_bytes, each.working_bytes, each.load_seconds) for each in residency.costs()
    ]


def test_a_vae_that_overflows_is_counted_in_float32(real: Path) -> None:
    # Of a tiny SDXL, the VAE's config says force_upcast; of the packaged model, it does not.
    half, full = (sizes_of(model_costs("xl", real / "xl", None, dtype)) for dtype in ("float16", "float32"))
    assert half == {**{name: size // 2 for name, size in full.items()}, "vae_decoder": full["vae_decoder"]}


def test_a_model_of_half_precision_is_counted_as_it_is_held(tmp_path: Path) -> None:
    folder = torch_model(tmp_path / "sd15")
    costs = model_costs("sd15", folder, None, "float16")
    assert sizes_of(costs) == {
        "text_encoder": 246 * MB,
        "unet": 1_720 * MB,
        "vae_decoder": 99 * MB + 40,
        "safety_checker": 608 * MB,
    }
    assert sizes_of(model_costs("sd15", folder, None, "float32"))["unet"] == 3_440 * MB
    assert (costs.size, costs.tile_pixels, costs.measured, costs.timed) == ((512, 512), 256 * 256, set(), set())
    unet, decoder = costs.stages[1], costs.stages[2]
    assert unet.working_bytes == expected_working("unet", 1_720 * MB, 512 * 512)
    assert unet.load_seconds == 1_720 * MB / LOAD_RATE
    # The prompts of the jobs that wait are encoded with those of the first.
    assert [each.uses_per_job for each in costs.stages] == [0, 1, 1, 1]
    assert costs.least_bytes == costs.least_of(unet) == EMPTY_RENDERER + unet.at_work_bytes
    assert costs.least_of(decoder) == EMPTY_RENDERER + decoder.size_bytes + decoder.working_bytes // 4
    everything = EMPTY_RENDERER + sum(sizes_of(costs).values())
    assert costs.resident_bytes == everything + max(each.working_bytes for each in costs.stages)


def test_what_has_no_safety_checker_is_counted_without(tmp_path: Path) -> None:
    without = {name: values for name, values in SD15.items() if name != "safety_checker"}
    costs = model_costs("sd15", torch_model(tmp_path, without), None, "float16")
    assert list(sizes_of(costs)) == ["text_encoder", "unet", "vae_decoder"]


def test_what_was_measured_counts_and_grows_with_the_image(tmp_path: Path) -> None:
    folder = torch_model(tmp_path / "sd15")
    known = {
        "unet": MeasuredCost(1, 700 * MB, 512 * 512, 3.5),
        "vae_decoder": MeasuredCost(1, 0, 0, 0.25),  # it has only worked in tiles so far
    }
    costs = model_costs("sd15", folder, None, "float16", known, (1024, 768))
    unet, decoder = costs.stages[1], costs.stages[2]
    assert (costs.measured, costs.timed) == ({"unet"}, {"unet", "vae_decoder"})
    assert (unet.size_bytes, unet.working_bytes, unet.load_seconds) == (1_720 * MB, 2_100 * MB, 3.5)
    assert decoder.working_bytes == expected_working("vae_decoder", decoder.size_bytes, 1024 * 768)
    assert decoder.load_seconds == 0.25
    # Tiles stay as large as they are.
    assert costs.tiled == {decoder.key: decoder.working_bytes * 256 * 256 // (1024 * 768)}
    # Of a smaller image, it is not known to take less.
    assert model_costs("sd15", folder, None, "float16", known, (256, 256)).stages[1].working_bytes == 700 * MB


def test_tiles_are_no_larger_than_the_image(tmp_path: Path) -> None:
    costs = model_costs("sd15", torch_model(tmp_path), None, "float16", size=(128, 512))
    assert costs.tile_pixels == 128 * 256
    costs = model_costs("sd15", tmp_path, None, "float16", size=(128, 128))
    assert list(costs.tiled.values()) == [costs.stages[2].working_bytes]


@pytest.mark.parametrize("size", [(10, 64), (64, 12)])
def test_a_size_that_does_not_fit_the_model_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(BadInputError, match=rf"{size[0]}x{size[1]} does not fit m: .* multiples of 8"):
        model_costs("m", torch_model(tmp_path), None, "float16", size=size)


def test_sides_of_latents_may_differ(tmp_path: Path) -> None:
    folder = torch_model(tmp_path, blocks=3)
    write_json(folder / "unet" / "config.json", {"sample_size": [32, 64]})  # height and width
    assert model_costs("m", folder, None, "float32").size == (256, 128)


# Converted models.


def test_of_a_converted_model_its_manifest_counts(tmp_path: Path) -> None:
    folder = small_files(tmp_path, ("text_encoder", "unet", "vae", "safety_checker"), side=16)
    checked = {**STAGES, "vae_encoder": 7, "controlnet-edges": 7, "control-unet": 8, "safety_checker": 600 * MB}
    form = original(converted(folder / "original", checked, sizes=((768, 512), (512, 512))))
    costs = model_costs("m", folder, form, "float16")
    assert sizes_of(costs) == {**STAGES, "safety_checker": 600 * MB}
    assert (costs.size, costs.tile_pixels, costs.tiled) == ((768, 512), None, {})
    # A converted VAE has no tiles.
    assert costs.least_of(costs.stages[2]) == EMPTY_RENDERER + costs.stages[2].at_work_bytes
    assert model_costs("m", folder, form, "float16", size=(512, 512)).size == (512, 512)
    with pytest.raises(BadInputError, match="1024x1024: m was converted for 768x512, 512x512 as original"):
        model_costs("m", folder, form, "float16", size=(1024, 1024))


def test_one_unet_may_do_with_and_without_controlnets(tmp_path: Path) -> None:
    folder = small_files(tmp_path, ("unet",))
    form = original(converted(folder, {"text_encoder": 1, "control-unet": 2, "controlnet-edges": 3, "vae_decoder": 4}))
    assert sizes_of(model_costs("m", folder, form, "float16")) == {
        "text_encoder": 1,
        "control-unet": 2,
        "vae_decoder": 4,
    }


def test_where_the_system_reads_the_prompts_the_text_encoder_is_not_loaded(tmp_path: Path) -> None:
    folder = small_files(tmp_path, ("text_encoder", "unet", "vae"))
    costs = model_costs("m", folder, original(converted(folder, {**STAGES, "multilingual_projection": 4})), "float16")
    assert list(sizes_of(costs)) == ["multilingual_projection", "unet", "vae_decoder"]
    assert [each.uses_per_job for each in costs.stages] == [1, 1, 1]  # vectors of prompts are not kept


def test_a_safety_checker_that_nothing_asks_is_not_counted(tmp_path: Path) -> None:
    folder = small_files(tmp_path, ("text_encoder", "unet", "vae"))
    form = original(converted(folder, {**STAGES, "safety_checker": 600 * MB}))
    assert sizes_of(model_costs("m", folder, form, "float16")) == STAGES


# Damage.


def _drop(*path: str) -> Callable[[Path], Any]:
    return lambda folder: folder.joinpath(*path).unlink()


def _rewrite(path: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / path).write_text(text, encoding="utf-8")


def _pickles(folder: Path) -> None:
    (folder / "unet" / "model.safetensors").rename(folder / "unet" / "model.bin")


def _cut_off(folder: Path) -> None:
    with (folder / "unet" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)


def _shape(shape: list[Any]) -> Callable[[Path], Any]:
    header = {"weight": {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]}}
    said = json.dumps(header).encode()
    path = ("unet", "model.safetensors")
    return lambda folder: folder.joinpath(*path).write_bytes(len(said).to_bytes(8, "little") + said)


def _no_unet(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    write_json(folder / "model_index.json", {**index, "unet": [None, None]})


DAMAGE: Mapping[str, tuple[Callable[[Path], Any], str]] = {
    "no index": (_drop("model_index.json"), "model_index.json is missing"),
    "an index that is no object": (_rewrite("model_index.json", "[]"), "does not hold a JSON object"),
    "a deep index": (_rewrite("model_index.json", "[" * 100_000), "cannot be read"),
    "no weights": (_drop("unet", "model.safetensors"), "holds no weights"),
    "pickles": (_pickles, "pickles"),
    "a shape of huge numbers": (_shape([1e308, 1e308]), "header cannot be read"),
    "a shape below 0": (_shape([-8]), "less than no values"),
    "cut off": (_cut_off, "cut off or damaged"),
    "no UNet": (_no_unet, "m has no unet"),
    "no config": (_drop("vae", "config.json"), "config.json is missing"),
    "a size in words": (_rewrite("unet/config.json", '{"sample_size": "large"}'), "'large', which is no size"),
    "a size of three": (_rewrite("unet/config.json", '{"sample_size": [8, 8, 8]}'), "no size"),
    "a size below 0": (_rewrite("vae/config.json", '{"sample_size": -8}'), "no size"),
    "blocks in words": (_rewrite("vae/config.json", '{"block_out_channels": "many"}'), "is no list"),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_said_and_never_too_large(
    tmp_path: Path, damage: Callable[[Path], Any], complaint: str
) -> None:
    folder = torch_model(tmp_path)
    damage(folder)
    with pytest.raises(ModelLoadError, match=complaint):
        model_costs("m", folder, None, "float32")
    assert why_too_large("m", folder, load(), 1) is None


def test_a_damaged_manifest_is_said(tmp_path: Path) -> None:
    folder = small_files(tmp_path, ("unet",))
    with pytest.raises(ModelLoadError, match=r"holds no manifest.json"):
        model_costs("m", folder, original(folder), "float16")
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="not a manifest"):
        model_costs("m", folder, original(folder), "float16")
    with pytest.raises(ModelLoadError, match="not a manifest"):
        smaller_forms("m", folder, GB)


def test_a_stage_without_which_nothing_is_rendered_is_missed(tmp_path: Path) -> None:
    for missing in STAGES:
        folder = small_files(tmp_path / missing, ("unet",))
        form = original(converted(folder, {name: size for name, size in STAGES.items() if name != missing}))
        with pytest.raises(ModelLoadError, match=f"m has no {missing}: it is not complete"):
            model_costs("m", folder, form, "float16")


def test_a_converted_model_has_nothing_for_torch(tmp_path: Path) -> None:
    folder = small_files(tmp_path, ("text_encoder", "unet", "vae"))
    converted(folder, STAGES)
    with pytest.raises(ModelLoadError, match="m is converted, and has no weights for torch"):
        model_costs("m", folder, None, "float16")


# Too large.


def test_what_fits_is_not_too_large_and_what_does_not_is_said(no_settings: Path, tmp_path: Path) -> None:
    folder = torch_model(tmp_path / "sd15")
    least = model_costs("sd15", folder, None, "float16").least_bytes
    settings = load(dtype="float16")
    assert why_too_large("sd15", folder, settings, least) is None
    assert why_too_large("sd15", folder, settings, least - 1) == (
        "sd15 does not fit: its unet alone takes 2,683 MB with the renderer around it, and there are 2,683 MB. Take "
        "a smaller model, or another --memory-budget; `renderkiln convert` and then `renderkiln compress --nbits 6` "
        "make a smaller one."
    )
    assert "takes 4,575 MB" in (why_too_large("sd15", folder, load(dtype="float32"), least) or "")


def test_where_the_image_is_too_large_a_smaller_model_is_no_advice(tmp_path: Path) -> None:
    costs = model_costs("sd15", torch_model(tmp_path), None, "float16", size=(2048, 2048))
    assert too_large("sd15", costs, 2 * GB, []) == (
        "sd15 does not fit: its unet alone takes 7,795 MB with the renderer around it, and there are 2,000 MB. Take "
        "another --memory-budget, or a smaller picture."
    )
    nothing = ModelCosts((), (64, 64))
    assert too_large("m", nothing, EMPTY_RENDERER, []) is None
    assert too_large("m", nothing, MB, []) == (
        "m does not fit: the renderer alone takes 450 MB before it has loaded anything, and there are 1 MB. Take "
        "another --memory-budget."
    )
    said = too_large("sd15", costs, EMPTY_RENDERER, [])
    assert said is not None
    assert "the renderer alone" in said
    assert "convert" not in said, "no smaller model would help"


@pytest.fixture
def variants(tmp_path: Path) -> Path:
    """A model with weights, and in three variants, each smaller than the one before."""
    folder = torch_model(tmp_path / "sd15")
    converted(folder, STAGES)
    converted(folder / "split-einsum", {**STAGES, "unet": 650 * MB}, "split-einsum", sizes=((512, 512), (768, 768)))
    converted(folder / "coreai", {**STAGES, "unet": 430 * MB}, "coreai")
    return folder


def pretend(monkeypatch: pytest.MonkeyPatch, *, no_coreai: str | None) -> None:
    system = System(is_mac=False, no_coreai=no_coreai, coreai_on_all_units=False)
    monkeypatch.setattr(memory, "this_system", lambda: system)


def test_the_variants_that_fit_are_named_the_smallest_first(monkeypatch: pytest.MonkeyPatch, variants: Path) -> None:
    pretend(monkeypatch, no_coreai=None)
    assert smaller_forms("m", variants, 3 * GB) == ["coreai", "split-einsum", "original"]
    # Here the decoder is the largest, which all have alike.
    assert smaller_forms("m", variants, 2_300 * MB) == ["coreai", "split-einsum"]
    assert smaller_forms("m", variants, 2 * GB) == []
    assert smaller_forms("m", variants, 9 * GB, (768, 768)) == ["split-einsum"]
    pretend(monkeypatch, no_coreai="needs macOS 26 or later")
    assert smaller_forms("m", variants, 2_300 * MB) == ["split-einsum"]


def test_a_smaller_variant_is_the_advice_with_what_to_type(
    no_settings: Path, monkeypatch: pytest.MonkeyPatch, variants: Path
) -> None:
    pretend(monkeypatch, no_coreai="needs macOS 26 or later")
    settings = load(dtype="float32")
    said = why_too_large("m", variants, settings, 2_300 * MB)
    assert said is not None
    assert said.startswith("m does not fit: its unet alone takes 4,575 MB")
    assert said.endswith("Its variant split-einsum would fit (--engine coreml --variant split-einsum).")
    pretend(monkeypatch, no_coreai=None)
    said = why_too_large("m", variants, settings, 2_300 * MB)
    assert said is not None
    assert said.endswith("Its variant coreai would fit (--engine coreai).")


def test_the_form_that_was_measured_to_be_best_counts(
    no_settings: Path, monkeypatch: pytest.MonkeyPatch, variants: Path
) -> None:
    pretend(monkeypatch, no_coreai="needs macOS 26 or later")
    settings = load(engine="coreml")
    assert "split-einsum would fit" in (why_too_large("m", variants, settings, 2_300 * MB, ("original", "all")) or "")
    assert why_too_large("m", variants, settings, 2_300 * MB, ("split-einsum", "all")) is None


@pytest.mark.parametrize(
    ("device", "dtype", "macos", "precision"),
    [
        ("auto", "auto", True, "float16"),
        ("auto", "auto", False, "float32"),
        ("cuda", "auto", False, "float16"),
        ("cpu", "auto", True, "float32"),
        ("cpu", "bfloat16", False, "bfloat16"),
        ("mps", "float32", True, "float32"),
    ],
)
def test_precision_is_what_torch_would_take(
    no_settings: Path, monkeypatch: pytest.MonkeyPatch, device: str, dtype: str, macos: bool, precision: str
) -> None:
    monkeypatch.setattr(memory, "on_macos", lambda: macos)
    assert torch_dtype(load(device=device, dtype=dtype)) == precision

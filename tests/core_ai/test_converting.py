"""Stages as Core AI assets: what they take and give, how near they are to torch, and what is refused before that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.convert.conftest import Converted, convert_here
from tests.coreml.conftest import COREAI
from tests.engine import models

from renderkiln.schema.errors import BadInputError, ConversionCheckError, ConversionError
from renderkiln.worker.convert.backends import coreai
from renderkiln.worker.convert.check import BAR
from renderkiln.worker.convert.options import make_options
from renderkiln.worker.demo import shapes_path
from renderkiln.worker.engine.libraries import diffusers
from renderkiln.worker.models.store import check_complete
from renderkiln.worker.runtimes import manifest
from renderkiln.worker.runtimes.coreai.bundle import read_bundle

from .conftest import Library, load

pytestmark = pytest.mark.timeout(600)
Here = Callable[..., Converted]


@pytest.fixture
def here(tmp_path: Path) -> Here:
    """Converts one stage of a model, into a folder of its own."""

    def convert(model: Path, stage: str, **options: Any) -> Converted:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return convert_here(folder, model, stage, **{**COREAI, **options})

    return convert


def interface(folder: Path) -> dict[str, dict[str, tuple[str, tuple[tuple[int, ...], ...]]]]:
    """Of each file what it takes and gives, as the manifest says."""
    return {
        package.file: {each.name: (each.dtype, each.shapes) for each in (*package.inputs, *package.outputs)}
        for stage in manifest.load(folder, digests=True).stages.values()
        for package in stage.packages
    }


def test_a_models_stages_are_as_apples_exporter_has_them(library: Library) -> None:
    folder = library.converted("tiny-coreai")
    found = interface(folder)
    # Names, layouts and integer token ids are those of coreai.diffusion.export; a safety checker it does not have.
    assert set(found) == {
        f"{name}.aimodel" for name in ("TextEncoder", "Unet", "VAEDecoder", "VAEEncoder", "SafetyChecker")
    }
    width = json.loads((folder / "unet" / "config.json").read_text())["cross_attention_dim"]
    assert found["TextEncoder.aimodel"] == {
        "input_ids": ("int32", ((1, 77),)),
        "last_hidden_state": ("float32", ((1, 77, width),)),
    }
    assert found["Unet.aimodel"] == {
        "sample": ("float32", ((2, 4, 16, 16),)),
        "timestep": ("float32", ((2,),)),
        "encoder_hidden_states": ("float32", ((2, 77, width),)),
        "noise_pred": ("float32", ((2, 4, 16, 16),)),
    }
    assert found["VAEEncoder.aimodel"]["latent_params"] == ("float32", ((1, 8, 16, 16),))
    assert set(found["VAEDecoder.aimodel"]) == {"z", "image"}
    check_complete(folder)


def test_sizes_are_functions_over_the_same_weights(library: Library) -> None:
    one, several = library.converted("tiny-coreai"), library.converted("tiny-coreai_sizes")
    unet = manifest.load(several).stages["unet"].packages[0]
    assert unet.functions == ("main", "main_48x32")
    assert next(each.shapes for each in unet.inputs if each.name == "sample") == ((2, 4, 16, 16), (2, 4, 16, 24))
    assert load(several / unet.file, *unet.functions).outputs["noise_pred"].shapes[1] == (2, 4, 16, 24)
    assert unet.size_bytes < 1.25 * manifest.load(one).stages["unet"].packages[0].size_bytes
    assert manifest.load(several).stages["text_encoder"].packages[0].functions == ("main",)


@pytest.mark.parametrize(
    ("model", "stage"),
    [("shapes", "text_encoder"), ("tiny", "unet"), ("tiny", "safety_checker"), ("xl", "text_encoder_2")],
)
def test_a_stage_in_half_precision_is_checked_and_passes(here: Here, library: Library, model: str, stage: str) -> None:
    made = here(library.torch(model), stage, precision="float16", check=True)
    assert made.done.bits == 16
    assert made.worst > BAR
    [package] = made.done.packages
    assert {each.dtype for each in package.inputs} == {"int32" if stage.startswith("text") else "float16"}


def test_sdxls_vae_stays_in_float32(here: Here, library: Library) -> None:
    made = here(library.torch("xl"), "vae_decoder", precision="float16", check=True)
    assert (made.done.bits, made.done.packages[0].inputs[0].dtype) == (32, "float32")
    assert made.worst > 100


@pytest.mark.parametrize("kind", ["sd2", "lcm", "painter"])
def test_other_kinds_of_unets(here: Here, tmp_path: Path, kind: str) -> None:
    unet = {
        "sd2": {"use_linear_projection": True, "attention_head_dim": [2, 4]},
        "lcm": {"time_cond_proj_dim": 8},
        "painter": {"in_channels": 9},
    }
    models.save_sd(tmp_path / kind, unet=unet[kind])
    assert here(tmp_path / kind, "unet", check=True).worst > 100


def test_four_bits_are_measured_beside_sixteen(here: Here) -> None:
    made = here(shapes_path(), "unet", nbits=4, check=True)
    assert made.done.bits is not None
    # Weights whose rows do not divide by 32 stay as they are, as in Apple's preset: of a model this small, many.
    assert 4 < made.done.bits < 28
    report = made.done.check
    assert report is not None
    assert min(each.decibels for each in report.results) > 100
    assert 20 < report.worst.decibels < 100


def test_a_stage_that_differs_too_much_is_not_written(here: Here, library: Library, monkeypatch: Any) -> None:
    export = torch.export.export

    def damaged(stage: Any, *arguments: Any) -> Any:
        stage.decoder.conv_out.weight.data *= 1.5
        return export(stage, *arguments)

    monkeypatch.setattr(torch.export, "export", damaged)
    with pytest.raises(ConversionCheckError, match=r"vae_decoder: its output image comes to \d+\.\d dB"):
        here(library.torch("tiny"), "vae_decoder", check=True)


def test_what_an_interpreter_takes_hours_for_is_checked_only_when_asked(
    here: Here, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreai, "_SMALL", 1000)
    assert here(library.torch("tiny"), "vae_encoder").done.check is None
    assert here(library.torch("tiny"), "vae_encoder", check=True).worst > BAR


@pytest.mark.parametrize("size", [(40, 32), (24, 24)])
def test_enlarging_by_parts_of_a_pixel_is_no_broadcast(size: tuple[int, int]) -> None:
    pixels = torch.arange(16.0 * 12).reshape(1, 1, 16, 12)
    with pytest.raises(ConversionError, match="16x12 by parts of a pixel"):
        coreai._repeat_pixels(pixels, list(size), None)
    for arguments in (([32, 36], None), (None, [2.0, 3.0])):
        wanted = torch.nn.functional.interpolate(pixels, size=(32, 36), mode="nearest")
        assert torch.equal(coreai._repeat_pixels(pixels, *arguments), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nbits": 6}, "--nbits 6: for Core AI there are 4 bits"),
        ({"attention": "split-einsum"}, "--attention split-einsum goes with --format coreml"),
        ({"chunk_unet": True}, "--chunk-unet goes with --format coreml"),
        ({"target": "macOS15"}, "--deployment-target macOS15 goes with"),
        ({"recipes": (("unet", Path("r.json")),)}, "--recipe goes with"),
        ({"precision": "bfloat16"}, "--precision"),
    ],
)
def test_what_core_ai_has_no_choice_of(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        make_options(format="coreai", **options)


def test_the_bundle_says_what_apples_pipeline_asks(tmp_path: Path, library: Library) -> None:
    from renderkiln.worker.convert.coreai_bundle import write_bundle

    folder = tmp_path / "model"
    shutil.copytree(library.converted("tiny-coreai"), folder)
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", beta_start=0.001)
    scheduler.save_pretrained(folder / "scheduler")
    vae = json.loads((folder / "vae" / "config.json").read_text()) | {"scaling_factor": 0.25}
    write_bundle(folder, manifest.load(folder), {"vae": vae})
    said = json.loads((folder / "metadata.json").read_text())
    assert (said["metadata_version"], said["kind"], said["name"]) == ("0.2", "diffusion", "model")
    assert said["assets"]["text_encoder"] == "TextEncoder.aimodel"
    assert set(said["assets"]) == set(manifest.load(folder).stages)
    diffusion = said["diffusion"]
    assert (diffusion["type"], diffusion["image_size"]) == ("stable-diffusion", 32)
    assert (diffusion["prediction_type"], diffusion["decoder_scale_factor"]) == ("v_prediction", 0.25)
    assert diffusion["scheduler"]["beta_start"] == 0.001
    bundle = read_bundle(folder)
    assert bundle is not None
    assert bundle.type == "stable-diffusion"

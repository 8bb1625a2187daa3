"""What of a model folder is refused, and in which words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.engine.torch_engine import TorchEngine
from renderkiln.worker.models.weights import find_weights

from . import models
from .conftest import Renderer

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(library: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    shutil.copytree(library / "tiny", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def fails(model: Path) -> Callable[[], str]:
    """Renders with the model; gives the message of the ModelLoadError that must come of it."""

    def attempt() -> str:
        render = Renderer(TorchEngine(lambda name, revision: model, device="cpu"))
        with pytest.raises(ModelLoadError) as caught:
            render(model="model")
        return str(caught.value)

    return attempt


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet/config.json",
        UNET,
        "scheduler",
        "tokenizer",
        "vae",
        "text_encoder/model.safetensors",
    ],
)
def test_a_missing_file_is_named(model: Path, fails: Callable[[], str], missing: str) -> None:
    path = model / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = fails()
    assert Path(missing).name.partition(".")[0].split("/")[0] in message or missing.split("/")[0] in message
    assert "missing" in message or "no weights" in message


def test_a_file_that_was_cut_off(model: Path, fails: Callable[[], str]) -> None:
    data = (model / UNET).read_bytes()
    (model / UNET).write_bytes(data[:-100])
    assert "cut off" in fails()


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 100, (20).to_bytes(8, "little") + b"not json at all!!!!!"])
def test_a_file_that_is_no_safetensors(model: Path, fails: Callable[[], str], data: bytes) -> None:
    (model / UNET).write_bytes(data)
    assert "damaged" in fails()


def test_a_file_that_lacks_weights(model: Path, fails: Callable[[], str]) -> None:
    weights = load_file(model / UNET)
    del weights["conv_in.weight"]
    save_file(weights, model / UNET, {"format": "pt"})
    assert "lack conv_in.weight" in fails()


def test_a_text_encoder_that_lacks_weights(model: Path, fails: Callable[[], str]) -> None:
    path = model / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "final_layer_norm" in name)
    del weights[name]
    save_file(weights, path, {"format": "pt"})
    assert "final_layer_norm" in fails()


def test_weights_of_another_shape(model: Path, fails: Callable[[], str]) -> None:
    edit(model / "unet" / "config.json", cross_attention_dim=16)
    assert "cannot be loaded as UNet2DConditionModel" in fails()


def test_pickles_are_refused(model: Path, fails: Callable[[], str]) -> None:
    (model / UNET).rename(model / "unet" / "diffusion_pytorch_model.bin")
    message = fails()
    assert "pickles" in message
    assert "safetensors" in message


def test_a_pipeline_of_another_kind(model: Path, fails: Callable[[], str]) -> None:
    edit(model / "model_index.json", _class_name="FluxPipeline")
    message = fails()
    assert "FluxPipeline" in message
    assert "StableDiffusionPipeline" in message
    assert "StableDiffusionXLPipeline" in message


def test_a_component_of_another_kind(model: Path, fails: Callable[[], str]) -> None:
    edit(model / "model_index.json", unet=["diffusers", "UNetMotionModel"])
    assert "UNetMotionModel" in fails()
    edit(model / "model_index.json", unet=[None, None])
    assert "its unet is missing" in fails()


def test_a_scheduler_of_another_kind(model: Path, fails: Callable[[], str]) -> None:
    edit(model / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    assert "FlowMatchEulerDiscreteScheduler" in fails()


def test_a_unet_with_other_channels(model: Path, fails: Callable[[], str]) -> None:
    edit(model / "unet" / "config.json", in_channels=8)
    assert "8 channels" in fails()


def test_json_that_is_none(model: Path, fails: Callable[[], str]) -> None:
    (model / "vae" / "config.json").write_text("{")
    assert "cannot be read" in fails()
    (model / "vae" / "config.json").write_text("[]")
    assert "JSON object" in fails()


def test_half_precision_files_alone_are_enough(library: Path, tmp_path: Path) -> None:
    models.save_sd(tmp_path / "half", variant="fp16")
    render = Renderer(TorchEngine(lambda name, revision: tmp_path / name, device="cpu"))
    plain = Renderer(TorchEngine(lambda name, revision: library / "tiny", device="cpu"))
    # Saved with full precision under that name: the same pictures.
    assert render(model="half")[0].rgb == plain()[0].rgb


def test_shards_are_read(tmp_path: Path, library: Path) -> None:
    models.save_sd(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*.safetensors"))) > 1
    render = Renderer(TorchEngine(lambda name, revision: tmp_path / name, device="cpu"))
    plain = Renderer(TorchEngine(lambda name, revision: library / "tiny", device="cpu"))
    assert render(model="shards")[0].rgb == plain()[0].rgb


def test_the_right_precision_is_preferred(model: Path) -> None:
    half = model / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(model / UNET).items()}, half, {"format": "pt"})
    assert find_weights(model / "unet", half=True).paths == (half,)
    assert find_weights(model / "unet", half=False).paths == (model / UNET,)


def test_an_old_config_gets_the_classs_defaults(model: Path) -> None:
    # Stable Diffusion 1.5's own UNet config knows nothing of half of today's settings.
    kept = (
        "_class_name",
        "act_fn",
        "attention_head_dim",
        "block_out_channels",
        "cross_attention_dim",
        "in_channels",
    )
    kept += (
        "down_block_types",
        "layers_per_block",
        "norm_num_groups",
        "out_channels",
        "sample_size",
        "up_block_types",
    )
    path = model / "unet" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({name: values[name] for name in kept}))
    render = Renderer(TorchEngine(lambda name, revision: model, device="cpu"))
    assert render(model="model")[0].rgb

"""Modules are what `from_pretrained` makes of the same files, to the bit, in less memory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from renderkiln.schema.errors import ModelLoadError
from renderkiln.worker.engine import torch_loading
from renderkiln.worker.engine.libraries import diffusers, transformers
from renderkiln.worker.engine.torch_loading import CLASSES, load_module
from renderkiln.worker.models.weights import find_weights

from . import models

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
IDS = torch.arange(77)[None] % 50


def make(class_name: str) -> Any:
    """A tiny module of that class, with random weights."""
    torch.manual_seed(0)
    if class_name == "AutoencoderKL":
        return models.make_vae()
    if class_name == "StableDiffusionSafetyChecker":
        return models.make_safety_checker(0.5)
    if class_name == "UNet2DConditionModel":
        return models.make_unet()
    if class_name == "ControlNetModel":
        return diffusers.ControlNetModel.from_unet(models.make_unet(), conditioning_embedding_out_channels=(8, 16))
    return CLASSES[class_name](transformers.CLIPTextConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2))


@torch.no_grad()
def outputs(module: Any) -> tuple[torch.Tensor, ...]:
    """What a module makes of made-up inputs."""
    numbers = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers).to(module.dtype)

    if isinstance(module, diffusers.AutoencoderKL):
        return (module(noise(1, 3, 32, 32)).sample,)
    if isinstance(module, diffusers.UNet2DConditionModel):
        return (module(noise(1, 4, 16, 16), 3, noise(1, 77, 32)).sample,)
    if isinstance(module, diffusers.ControlNetModel):
        down, middle = module(noise(1, 4, 16, 16), 3, noise(1, 77, 32), noise(1, 3, 32, 32), return_dict=False)
        return (*down, middle)
    if isinstance(module, CLASSES["StableDiffusionSafetyChecker"]):
        return (module.visual_projection(module.vision_model(noise(1, 3, 32, 32))[1]), module.concept_embeds_weights)
    return tuple(module(IDS, return_dict=False))


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, also those that are not saved."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def load(folder: Path, dtype: torch.dtype, **settings: Any) -> Any:
    return load_module(class_of(folder), folder, find_weights(folder, half=False), dtype, CPU, **settings)


def class_of(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    name: str = config["_class_name"] if "_class_name" in config else config["architectures"][0]
    return name


def check_same(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Loads in either way, and compares; gives ours and the library's."""
    ours = load(folder, dtype)
    theirs = CLASSES[class_of(folder)].from_pretrained(folder, dtype=dtype, use_safetensors=True)
    held, wanted = tensors(ours), tensors(theirs)
    assert list(held) == list(wanted)
    for name, tensor in wanted.items():
        assert held[name].dtype == tensor.dtype, name
        assert held[name].stride() == tensor.stride(), name
        assert torch.equal(held[name], tensor), name
    assert [module.training for module in ours.modules()] == [module.training for module in theirs.modules()]
    assert {name: type(module) for name, module in ours.named_modules()} == {
        name: type(module) for name, module in theirs.named_modules()
    }
    if hasattr(theirs.config, "_attn_implementation"):
        assert ours.config._attn_implementation == theirs.config._attn_implementation
        assert ours.config.to_dict() == theirs.config.to_dict()
    else:
        assert dict(ours.config) == dict(theirs.config)
    # Not to the bit: where weights lie in memory decides in which order some processors add up.
    torch.testing.assert_close(outputs(ours), outputs(theirs))
    return ours, theirs


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("class_name", CLASSES)
def test_all_is_as_from_pretrained_has_it(tmp_path: Path, class_name: str, stored: torch.dtype) -> None:
    make(class_name).to(stored).save_pretrained(tmp_path)
    for dtype in DTYPES:
        check_same(tmp_path, dtype)


@pytest.mark.parametrize("class_name", CLASSES)
def test_shards_and_tensors_in_pieces(tmp_path: Path, class_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(class_name).half().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    monkeypatch.setattr(torch_loading, "_PIECE_VALUES", 100)
    monkeypatch.setattr(torch_loading, "_MAPPED_VALUES", 1000)
    check_same(tmp_path, torch.bfloat16)


def rename(folder: Path, new_name: Callable[[str], str], **more: torch.Tensor) -> set[str]:
    """Renames the tensors of a component's file; gives the names that it has now."""
    (path,) = find_weights(folder, half=False).paths
    weights = {**{new_name(name): tensor for name, tensor in load_file(path).items()}, **more}
    save_file(weights, path, {"format": "pt"})
    return set(weights)


def test_attention_of_an_old_vae(tmp_path: Path) -> None:
    make("AutoencoderKL").save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def old_name(name: str) -> str:
        for now, then in old.items():
            name = name.replace(f".{now}.", f".{then}.")
        return name

    assert "decoder.mid_block.attentions.0.proj_attn.bias" in rename(tmp_path, old_name)
    check_same(tmp_path, torch.float16)


@pytest.mark.parametrize("prefix", ["", "text_model."])
@pytest.mark.parametrize("class_name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_old_and_new_names_of_a_text_encoder(tmp_path: Path, class_name: str, prefix: str) -> None:
    make(class_name).save_pretrained(tmp_path)

    def name_then(name: str) -> str:
        return name if name.startswith("text_projection") else prefix + name.removeprefix("text_model.")

    ids = {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}
    assert f"{prefix}final_layer_norm.bias" in rename(tmp_path, name_then, **ids)
    check_same(tmp_path, torch.bfloat16)


@pytest.mark.parametrize("prefix", ["vision_model.", "vision_model.vision_model."])
def test_old_and_new_names_of_a_safety_checker(tmp_path: Path, prefix: str) -> None:
    make("StableDiffusionSafetyChecker").save_pretrained(tmp_path)

    def name_then(name: str) -> str:
        short = name.removeprefix("vision_model.").removeprefix("vision_model.")
        return name if short == name else prefix + short

    ids = {f"{prefix}embeddings.position_ids": torch.arange(5)[None]}
    assert f"{prefix}post_layernorm.bias" in rename(tmp_path, name_then, **ids)
    check_same(tmp_path, torch.bfloat16)


def test_buffers_that_no_file_holds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("KDownBlock2D", "KDownBlock2D"), "up_block_types": ("KUpBlock2D", "KUpBlock2D")}
    # As Stable Diffusion's x2 upscaler has them.
    settings = {"block_out_channels": (32, 64), "mid_block_type": None, "resnet_time_scale_shift": "scale_shift"}
    unet = models.make_unet(**blocks, **settings, act_fn="gelu", time_embedding_type="fourier", conv_in_kernel=1)
    unet.save_pretrained(tmp_path)
    ours = load(tmp_path, torch.bfloat16)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    buffers = dict(theirs.named_buffers())
    assert buffers
    assert not buffers.keys() & theirs.state_dict().keys()
    for name, buffer in buffers.items():
        assert ours.get_buffer(name).dtype == buffer.dtype
        assert torch.equal(ours.get_buffer(name), buffer)


@pytest.mark.parametrize("class_name", ["UNet2DConditionModel", "CLIPTextModel"])
def test_parts_that_are_to_stay_in_float32(tmp_path: Path, class_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = "conv_out" if class_name == "UNet2DConditionModel" else "final_layer_norm"
    make(class_name).save_pretrained(tmp_path)
    monkeypatch.setattr(CLASSES[class_name], "_keep_in_fp32_modules", [kept])
    for dtype in (torch.float16, torch.bfloat16):
        ours, theirs = load(tmp_path, dtype), CLASSES[class_name].from_pretrained(tmp_path, dtype=dtype)
        dtypes = {name: tensor.dtype for name, tensor in tensors(ours).items()}
        assert dtypes == {name: tensor.dtype for name, tensor in tensors(theirs).items()}
    assert load(tmp_path, torch.float16).get_submodule(kept).weight.dtype == torch.float32


def test_what_a_half_of_a_vae_does_without_is_not_read(tmp_path: Path) -> None:
    vae = make("AutoencoderKL")
    vae.save_pretrained(tmp_path)
    (path,) = find_weights(tmp_path, half=False).paths
    half = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(("encoder", "quant_conv"))}
    save_file(half, path, {"format": "pt"})
    decoder = load(tmp_path, torch.float32, without=("encoder", "quant_conv"))
    assert decoder.encoder is None
    latents = torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        assert torch.equal(decoder.decode(latents).sample, vae.eval().decode(latents).sample)
    with pytest.raises(ModelLoadError, match=r"lack encoder\.\S+, .* and \d+ more: the model is not complete"):
        load(tmp_path, torch.float32)


def test_other_threads_notice_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("UNet2DConditionModel").save_pretrained(tmp_path)
    seen: list[torch.nn.Linear] = []
    from_config = diffusers.UNet2DConditionModel.from_config

    def watched(*args: Any, **kwargs: Any) -> Any:
        thread = threading.Thread(target=lambda: seen.append(torch.nn.Linear(2, 2)))
        thread.start()
        thread.join()
        return from_config(*args, **kwargs)

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "from_config", watched)
    load(tmp_path, torch.bfloat16)
    assert seen[0].weight.device == CPU
    assert seen[0].weight.dtype == torch.float32
    assert seen[0].weight.any()


def test_random_numbers_are_left_alone(tmp_path: Path) -> None:
    make("StableDiffusionSafetyChecker").save_pretrained(tmp_path)
    before = torch.get_rng_state()
    load(tmp_path, torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("class_name", ["UNet2DConditionModel", "CLIPTextModel"])
class TestWhatDoesNotFit:
    def change(self, folder: Path, class_name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> str:
        """Changes the first tensor of a component's file, None: drops it; gives the message of the error."""
        make(class_name).save_pretrained(folder)
        (path,) = find_weights(folder, half=False).paths
        weights = load_file(path)
        name = min(name for name in weights if name.endswith("bias"))
        changed = change(weights.pop(name))
        save_file(weights if changed is None else {**weights, name: changed}, path, {"format": "pt"})
        with pytest.raises(ModelLoadError) as caught:
            load(folder, torch.float16)
        return str(caught.value)

    def test_a_tensor_that_is_not_there(self, tmp_path: Path, class_name: str) -> None:
        message = self.change(tmp_path, class_name, lambda tensor: None)
        assert f"the weights in {tmp_path} lack " in message
        assert message.endswith("bias: the model is not complete")

    def test_another_shape(self, tmp_path: Path, class_name: str) -> None:
        message = self.change(tmp_path, class_name, lambda tensor: tensor[:3].clone())
        assert f"{tmp_path} cannot be loaded as {class_name}: " in message
        assert "is of shape (3,), and its config asks for (" in message

    def test_integers(self, tmp_path: Path, class_name: str) -> None:
        assert "holds I8" in self.change(tmp_path, class_name, lambda tensor: tensor.to(torch.int8))

    def test_quantized_weights(self, tmp_path: Path, class_name: str) -> None:
        make(class_name).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "bitsandbytes"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelLoadError, match="quantized"):
            load(tmp_path, torch.float16)


_MEASURE = """
import re, sys, torch
from pathlib import Path
from renderkiln.worker.models.weights import find_weights
from renderkiln.worker.engine.torch_loading import load_module

def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

modules = []
for class_name, folder, dtype in zip(*[iter(sys.argv[1:])] * 3):
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    weights = find_weights(Path(folder), half=True)
    modules.append(load_module(class_name, Path(folder), weights, getattr(torch, dtype), torch.device("cpu")))
    held = sum(parameter.nbytes for parameter in modules[-1].parameters())
    print(held, status("VmHWM") - before - held)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a while")
def test_memory_peaks_little_above_what_is_held(tmp_path: Path) -> None:
    # Empty weights: what they are is of no matter here. One large tensor, and many that together are large.
    with torch.device("meta"):
        unet = models.make_unet(block_out_channels=(320, 640), norm_num_groups=32, attention_head_dim=64)
        text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=80_000, num_hidden_layers=1))
    arguments = []
    for module, stem, stored, dtype in (
        (text_encoder, "model", torch.float32, "float16"),
        (unet, "diffusion_pytorch_model", torch.float16, "bfloat16"),
    ):
        class_name = type(module).__name__
        folder = tmp_path / class_name
        folder.mkdir()
        module.save_config(folder) if stem != "model" else module.config.save_pretrained(folder)
        weights = {name: torch.zeros(tensor.shape, dtype=stored) for name, tensor in module.state_dict().items()}
        save_file(weights, folder / f"{stem}.safetensors", {"format": "pt"})
        assert (folder / f"{stem}.safetensors").stat().st_size > 150e6
        arguments += [class_name, str(folder), dtype]
    measured = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], check=True, capture_output=True, text=True, timeout=120
    ).stdout.split()
    for path in tmp_path.glob("*/*.safetensors"):
        path.unlink()
    for held, above in zip(map(int, measured[::2]), map(int, measured[1::2]), strict=True):
        assert held > 80e6
        assert above < 110e6


def test_every_half_becomes_the_bfloat16_that_torch_makes_of_it() -> None:
    halves = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16).repeat(5)[:-7]
    ours = torch.empty(halves.shape, dtype=torch.bfloat16)
    torch_loading._copy_through_float32(halves, ours)
    theirs = halves.to(torch.bfloat16)
    same = (ours.view(torch.int16) == theirs.view(torch.int16)) | (ours.isnan() & theirs.isnan())
    assert bool(same.all())

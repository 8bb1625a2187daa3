"""Fusing LoRAs: W + weight · alpha / rank · up · down, under every naming that is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine import models as engine_models

from renderkiln.schema.errors import BadInputError
from renderkiln.worker.convert.lora import fuse_lora, read_lora

from . import models

LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.1.resnets.0.conv1"
RANK = 3


@pytest.fixture
def unet() -> Any:
    torch.manual_seed(0)
    return engine_models.make_unet()


def factors(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Down and up for a layer's weight."""
    random = torch.Generator().manual_seed(1)
    down = torch.randn(RANK, *weight.shape[1:], generator=random)
    up = torch.randn(weight.shape[0], RANK, *([1] * (weight.ndim - 2)), generator=random)
    return down, up


NAMINGS = {
    "peft": ("unet.{dots}.lora_A.weight", "unet.{dots}.lora_B.weight", None),
    "diffusers": ("unet.{dots}.lora.down.weight", "unet.{dots}.lora.up.weight", None),
    "kohya": ("lora_unet_{flat}.lora_down.weight", "lora_unet_{flat}.lora_up.weight", "lora_unet_{flat}.alpha"),
}


@pytest.mark.parametrize("layer", [LAYER, CONV])
@pytest.mark.parametrize("naming", NAMINGS)
def test_a_layer_becomes_its_weight_and_the_product(tmp_path: Path, unet: Any, naming: str, layer: str) -> None:
    weight = unet.get_submodule(layer).weight
    before = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    down, up = factors(weight)
    tensors = dict(
        zip(
            [name.format(dots=layer, flat=layer.replace(".", "_")) for name in NAMINGS[naming] if name],
            [down, up, torch.tensor(6.0)],
            strict=False,
        )
    )
    path = models.save_lora(tmp_path / "a.safetensors", tensors)
    assert fuse_lora(read_lora(path), 0.5, "unet", unet) == 1
    scale = 0.5 * (6.0 / RANK if naming == "kohya" else 1.0)
    product = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down) if weight.ndim == 4 else up @ down
    torch.testing.assert_close(weight, before[f"{layer}.weight"] + scale * product)
    changed = {name for name, parameter in unet.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {f"{layer}.weight"}


def test_diffusers_first_naming_is_read(tmp_path: Path, unet: Any) -> None:
    where = LAYER.removesuffix(".to_q")
    down, up = factors(unet.get_submodule(LAYER).weight)
    out_down, out_up = factors(unet.get_submodule(f"{where}.to_out.0").weight)
    tensors = {
        f"unet.{where}.processor.to_q_lora.down.weight": down,
        f"unet.{where}.processor.to_q_lora.up.weight": up,
        f"unet.{where}.processor.to_out_lora.down.weight": out_down,
        f"unet.{where}.processor.to_out_lora.up.weight": out_up,
    }
    assert fuse_lora(read_lora(models.save_lora(tmp_path / "a.safetensors", tensors)), 1.0, "unet", unet) == 2


@pytest.mark.parametrize(
    ("original", "diffusers_name"),
    [
        ("input_blocks_3_1_transformer_blocks_0_attn1_to_q", LAYER),
        ("input_blocks_3_0_in_layers_2", CONV),
        ("input_blocks_2_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_0_0", "conv_in"),
        ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("middle_block_2_emb_layers_1", "mid_block.resnets.1.time_emb_proj"),
        ("output_blocks_1_1_transformer_blocks_0_ff_net_2", "up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2"),
        ("output_blocks_2_0_skip_connection", "up_blocks.1.resnets.0.conv_shortcut"),
    ],
)
def test_blocks_counted_as_the_original_unet_counts_them_are_found(
    tmp_path: Path, unet: Any, original: str, diffusers_name: str
) -> None:
    weight = unet.get_submodule(diffusers_name).weight
    before = weight.clone()
    down, up = factors(weight)
    tensors = {f"lora_unet_{original}.lora_down.weight": down, f"lora_unet_{original}.lora_up.weight": up}
    assert fuse_lora(read_lora(models.save_lora(tmp_path / "a.safetensors", tensors)), 1.0, "unet", unet) == 1
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("prefix", ["lora_te_text_model_{flat}", "lora_te1_text_model_{flat}", "text_encoder.{dots}"])
def test_a_text_encoders_layers_are_found(tmp_path: Path, prefix: str) -> None:
    tokenizer = engine_models.save_tokenizer(tmp_path / "tokenizer")
    from renderkiln.worker.engine.libraries import transformers

    encoder = transformers.CLIPTextModel(engine_models.text_config(tokenizer))
    layer = "encoder.layers.0.self_attn.q_proj"
    down, up = factors(encoder.get_submodule(layer).weight)
    name = prefix.format(flat=layer.replace(".", "_"), dots=f"text_model.{layer}")
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    lora = read_lora(models.save_lora(tmp_path / "a.safetensors", tensors))
    assert fuse_lora(lora, 1.0, "text_encoder", encoder) == 1
    assert fuse_lora(lora, 1.0, "text_encoder_2", encoder) == 0


ONES = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"conv_in.weight": ONES}, "neither UNet nor text encoder"),
        ({"unet.conv_in.weight": ONES}, "not a name that a LoRA has"),
        ({"lora_unet_x.hada_w1_a": ONES}, "LoHa"),
        ({"unet.x.lora_A.weight": ONES, "unet.x.dora_scale": ONES}, "DoRA"),
        ({"unet.x.lora_A.weight": ONES}, "lacks one of its two factors"),
    ],
)
def test_what_is_no_lora_is_refused_before_anything_is_converted(
    tmp_path: Path, tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInputError, match=message):
        read_lora(models.save_lora(tmp_path / "a.safetensors", tensors))


@pytest.mark.parametrize(("layer", "message"), [("nowhere.to_q", "has no layer"), (LAYER, "the model's is")])
def test_a_lora_for_another_model_is_refused(tmp_path: Path, unet: Any, layer: str, message: str) -> None:
    tensors = {f"unet.{layer}.lora_A.weight": torch.ones(2, 7), f"unet.{layer}.lora_B.weight": torch.ones(5, 2)}
    with pytest.raises(BadInputError, match=message):
        fuse_lora(read_lora(models.save_lora(tmp_path / "a.safetensors", tensors)), 1.0, "unet", unet)

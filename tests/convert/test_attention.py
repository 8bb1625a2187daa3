"""The rewritten transformers give what the stock ones give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine import models

from renderkiln.schema.errors import ConversionError
from renderkiln.worker.convert.attention import QUERY_CHUNK, rewrite_attention, split_einsum
from renderkiln.worker.convert.options import Attention
from renderkiln.worker.engine.libraries import diffusers

REWRITTEN: list[Attention] = ["split-einsum", "split-einsum-v2"]


@pytest.mark.parametrize("attention", REWRITTEN)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_projection": True, "attention_head_dim": (2, 8)},
        {"only_cross_attention": True},
        {"transformer_layers_per_block": (1, 3)},
    ],
    ids=["sd1", "sd2", "only-cross", "deep"],
)
def test_a_unet_gives_the_same_as_before(attention: Attention, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    unet = models.make_unet(**changes).eval()
    # 1,536 positions at the transformers: three chunks of queries.
    sample, time, text = torch.randn(2, 4, 64, 96), torch.tensor([7.0, 940.0]), torch.randn(2, 77, models.WIDTH)
    with torch.no_grad():
        before = unet(sample, time, text, return_dict=False)[0]
        rewrite_attention(unet, attention)
        after = unet(sample, time, text.transpose(1, 2).unsqueeze(2), return_dict=False)[0]
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", REWRITTEN)
def test_a_controlnet_gives_the_same_as_before(attention: Attention) -> None:
    torch.manual_seed(0)
    controlnet = diffusers.ControlNetModel.from_unet(
        models.make_unet(), conditioning_embedding_out_channels=(8, 16)
    ).eval()
    for parameter in controlnet.parameters():
        torch.nn.init.normal_(parameter.data, std=0.1)
    picture = torch.rand(1, 3, 32, 32)
    sample, time, text = torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 77, models.WIDTH)
    with torch.no_grad():
        before = controlnet(sample, time, text, picture, return_dict=False)
        rewrite_attention(controlnet, attention)
        after = controlnet(sample, time, text.transpose(1, 2).unsqueeze(2), picture, return_dict=False)
    for old, new in zip((*before[0], before[1]), (*after[0], after[1]), strict=True):
        torch.testing.assert_close(new, old, atol=2e-4, rtol=1e-3)


def test_the_weights_are_the_same_memory() -> None:
    unet = models.make_unet(use_linear_projection=True)
    before = {parameter.data_ptr() for parameter in unet.parameters()}
    rewrite_attention(unet, "split-einsum")
    assert {parameter.data_ptr() for parameter in unet.parameters()} == before


def test_original_leaves_a_model_as_it_is() -> None:
    unet = models.make_unet()
    modules = [type(module) for module in unet.modules()]
    rewrite_attention(unet, "original")
    assert [type(module) for module in unet.modules()] == modules


def test_a_transformer_of_another_kind_is_an_error_that_names_it() -> None:
    unet = models.make_unet()
    unet.mid_block.attentions[0].transformer_blocks[0].norm_type = "ada_norm"
    with pytest.raises(ConversionError, match=r"mid_block\.attentions\.0\.transformer_blocks\.0"):
        rewrite_attention(unet, "split-einsum")


@settings(max_examples=40)
@given(
    heads=st.integers(1, 4),
    size=st.integers(1, 8),
    queries=st.integers(1, 70),
    keys=st.integers(1, 20),
    chunk=st.one_of(st.none(), st.integers(1, 40)),
    seed=st.integers(0, 1000),
)
def test_attention_by_heads_and_chunks_is_attention(
    heads: int, size: int, queries: int, keys: int, chunk: int | None, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)

    def draw(length: int) -> torch.Tensor:
        return torch.randn(2, heads * size, 1, length, generator=random)

    query, key, value = draw(queries), draw(keys), draw(keys)
    by_head = [each.reshape(2, heads, size, -1).transpose(2, 3) for each in (query, key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(*by_head)
    found = split_einsum(query, key, value, heads, chunk)
    assert found.shape == query.shape
    torch.testing.assert_close(found.reshape(2, heads, size, -1).transpose(2, 3), expected, atol=1e-5, rtol=1e-4)


def test_queries_are_cut_as_apple_cuts_them() -> None:
    assert QUERY_CHUNK == 512

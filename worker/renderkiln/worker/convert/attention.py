"""Rewrites a UNet's or a ControlNet's transformers in the layout and the order of work that the Neural Engine likes.

Everything stays (B, C, 1, S), channels before positions; each Linear is a 1×1 convolution over a view of the same
weights; LayerNorm runs over channels; attention runs head by head. The numbers are those of the stock modules, but
for rounding. After Apple's notes on transformers for the Neural Engine (machinelearning.apple.com/research).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from renderkiln.schema.errors import ConversionError

from .options import Attention

#: Queries at a time in split-einsum-v2: Apple's number, which bounds the largest intermediate tensor.
QUERY_CHUNK = 512


def rewrite_attention(model: nn.Module, attention: Attention) -> None:
    """Puts our transformers in the place of the model's own, over the same weights; 'original' changes nothing.

    The model then takes `encoder_hidden_states` as (B, C, 1, S) instead of (B, S, C).

    Raises:
        ConversionError: the model has a kind of transformer that this layout is not written for.
    """
    if attention == "original":
        return
    chunk = QUERY_CHUNK if attention == "split-einsum-v2" else None
    found = [name for name, module in model.named_modules() if type(module).__name__ == "Transformer2DModel"]
    for name in found:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, child, ChannelsFirstTransformer(model.get_submodule(name), chunk, name))


def split_einsum(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, chunk: int | None
) -> torch.Tensor:
    """Attention, head by head, and with a chunk length also that many queries at a time.

    Args:
        query: (B, heads · D, 1, Q).
        key, value: (B, heads · D, 1, K).

    Returns:
        (B, heads · D, 1, Q).
    """
    size = query.shape[1] // heads
    # Scaled before the product, which is cheaper and keeps float16 further from overflowing than scaling after it.
    query = query * size**-0.5
    # Keys by (B, K, 1, heads · D): so the product over channels needs no transpose per head.
    key = key.transpose(1, 3)
    results = []
    for head in range(heads):
        channels = slice(head * size, (head + 1) * size)
        q, k, v = query[:, channels], key[:, :, :, channels], value[:, channels]
        parts = [q] if chunk is None else [q[..., at : at + chunk] for at in range(0, int(q.shape[3]), chunk)]
        attended = [_attend(part, k, v) for part in parts]
        results.append(attended[0] if len(attended) == 1 else torch.cat(attended, dim=3))
    return torch.cat(results, dim=1)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    weights = torch.einsum("bchq,bkhc->bkhq", query, key).softmax(dim=1)
    return torch.einsum("bkhq,bchk->bchq", weights, value)


class ChannelsFirstTransformer(nn.Module):  # type: ignore[misc]
    """Stands for a `Transformer2DModel` over pictures.

    Args:
        stock: the module whose weights are used; not changed.
        chunk: queries at a time, or None for all at once.
        name: where it is in its model, for messages.
    """

    def __init__(self, stock: Any, chunk: int | None, name: str) -> None:
        super().__init__()
        if not stock.is_input_continuous:
            raise ConversionError(
                f"{name} is a transformer over patches; split-einsum needs attention 'original' there"
            )
        self.norm = stock.norm
        self.proj_in, self.proj_out = _as_conv(stock.proj_in), _as_conv(stock.proj_out)
        self.blocks = nn.ModuleList(
            _Block(block, chunk, f"{name}.transformer_blocks.{index}")
            for index, block in enumerate(stock.transformer_blocks)
        )

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **_ignored: Any
    ) -> tuple[torch.Tensor]:
        """(B, C, H, W) and (B, E, 1, S) to a tuple of (B, C, H, W); masks and the like are None in what we convert."""
        batch, _, height, width = hidden_states.shape
        x = self.proj_in(self.norm(hidden_states))
        channels = x.shape[1]
        x = x.reshape(batch, channels, 1, height * width)
        for block in self.blocks:
            x = block(x, encoder_hidden_states)
        x = x.reshape(batch, channels, height, width)
        return (self.proj_out(x) + hidden_states,)


class _Block(nn.Module):  # type: ignore[misc]
    """Stands for a `BasicTransformerBlock`: self-attention, cross-attention, feed-forward, each beside its input."""

    def __init__(self, stock: Any, chunk: int | None, name: str) -> None:
        super().__init__()
        gated = type(stock.ff.net[0]).__name__ == "GEGLU"
        if stock.norm_type != "layer_norm" or stock.pos_embed is not None or stock.attn2 is None or not gated:
            raise ConversionError(
                f"{name} is no transformer block of Stable Diffusion's kind; use attention 'original'"
            )
        self.norm1, self.norm2, self.norm3 = (_ChannelNorm(norm) for norm in (stock.norm1, stock.norm2, stock.norm3))
        self.attn1, self.attn2 = _Attention(stock.attn1, chunk), _Attention(stock.attn2, chunk)
        self.only_cross = bool(stock.only_cross_attention)
        self.widen, self.narrow = _as_conv(stock.ff.net[0].proj), _as_conv(stock.ff.net[2])

    def forward(self, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        x = x + self.attn1(self.norm1(x), context if self.only_cross else None)
        x = x + self.attn2(self.norm2(x), context)
        values, gate = self.widen(self.norm3(x)).chunk(2, dim=1)
        narrowed: torch.Tensor = self.narrow(values * nn.functional.gelu(gate))
        return x + narrowed


class _Attention(nn.Module):  # type: ignore[misc]
    """Stands for an `Attention` with the stock processor and no mask."""

    def __init__(self, stock: Any, chunk: int | None) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (_as_conv(each) for each in (stock.to_q, stock.to_k, stock.to_v))
        self.to_out = _as_conv(stock.to_out[0])
        self.heads: int = stock.heads
        self.chunk = chunk

    def forward(self, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        source = x if context is None else context
        attended = split_einsum(self.to_q(x), self.to_k(source), self.to_v(source), self.heads, self.chunk)
        out: torch.Tensor = self.to_out(attended)
        return out


class _ChannelNorm(nn.Module):  # type: ignore[misc]
    """Stands for a `LayerNorm` over C, on (B, C, 1, S).

    Apple folds the shift into the scale, `(x + b / w) · w`, which a weight of zero breaks; `x · w + b` needs no care.
    """

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.eps: float = stock.eps
        shape = (1, -1, 1, 1)
        self.weight = None if stock.weight is None else nn.Parameter(stock.weight.view(shape), requires_grad=False)
        self.bias = None if stock.bias is None else nn.Parameter(stock.bias.view(shape), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(dim=1, keepdim=True)
        x = centred * (centred.pow(2).mean(dim=1, keepdim=True) + self.eps).rsqrt()
        if self.weight is not None:
            x = x * self.weight
        return x if self.bias is None else x + self.bias


def _as_conv(layer: Any) -> nn.Conv2d:
    """A Linear as a 1×1 convolution over the same storage; a convolution as it is."""
    if isinstance(layer, nn.Conv2d):
        return layer
    conv = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=layer.bias is not None, device="meta")
    conv.weight = nn.Parameter(layer.weight[:, :, None, None], requires_grad=False)
    if layer.bias is not None:
        conv.bias = nn.Parameter(layer.bias, requires_grad=False)
    return conv

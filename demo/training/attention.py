"""Attention as two products and a softmax: on a CPU its backward pass is far quicker than the fused one's."""

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


def mixed(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """What queries find: each b n c, in so many heads side by side -> b n c."""

    def parted(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)  # b*heads n c/heads

    q, k, v = parted(q), parted(k), parted(v)
    weights = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2)).softmax(-1)
    return torch.bmm(weights.to(v.dtype), v).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


class PlainAttention:
    """One attention's computation, as diffusers' networks call it."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """b n c."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        found = mixed(attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source), attn.heads)
        out: Tensor = attn.to_out[0](found)
        return out


class NoAttention:
    """An attention whose output is zero."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """b n c of zeros."""
        return torch.zeros_like(hidden_states)


def use_plain_attention(network: nn.Module) -> None:
    """In all of a network's attentions."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(PlainAttention())

"""The parts of CLIP's residual attention block, which both encoders put together in their own way.

x + attention(ln_1(x)), then x + mlp(ln_2(x)). B sequences, L tokens, C channels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.errors import CATSegError
from cat_seg.modeling import fused
from cat_seg.modeling.layers import add, gelu, linear, may_overwrite


def check_blocks(transformer: Transformer, tower: str) -> None:
    """Raise a CATSegError unless a tower ("image" or "text") is made of the blocks known here."""
    for block in transformer.resblocks:
        if not isinstance(block, ResidualAttentionBlock):
            raise CATSegError(
                f"The {tower} encoder is made of {type(block).__name__}; expected open_clip's "
                "ResidualAttentionBlock (plain multi-head attention and MLP, pre-norm). Choose a "
                "CLIP of that layout, such as ViT-B-16, ViT-L-14-336, ViT-H-14 or ViT-bigG-14."
            )


def query_key_value(attn: nn.MultiheadAttention, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project (..., C) to queries, keys and values, each (..., C)."""
    if attn.in_proj_weight is not None:
        q, k, v = linear(y, attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
    else:
        bias_q, bias_k, bias_v = attn.in_proj_bias.chunk(3)
        q = linear(y, attn.q_proj_weight, bias_q)
        k = linear(y, attn.k_proj_weight, bias_k)
        v = linear(y, attn.v_proj_weight, bias_v)
    return q, k, v


def value(attn: nn.MultiheadAttention, y: Tensor) -> Tensor:
    """Project (..., C) to values alone, (..., C)."""
    fused = attn.in_proj_weight
    weight = attn.v_proj_weight if fused is None else fused.chunk(3)[2]
    return linear(y, weight, attn.in_proj_bias.chunk(3)[2])


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """Multi-head attention over L: three (B, L, C) to (B, L, C)."""
    q, k, v = (rearrange(t, "b l (h c) -> b h l c", h=heads) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return rearrange(out, "b h l c -> b l (h c)")


def add_attention_and_mlp(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """y + mlp(ln_2(y)) with y = x + output projection of the attended values; `x` may broadcast."""
    out = block.attn.out_proj
    projected = block.ls_1(linear(attended, out.weight, out.bias))
    if fused.half_on_cuda(projected) and x.dtype == torch.float32 and x.shape == projected.shape:
        x, y = fused.add_norm(x, projected, block.ln_2)
    else:
        x = add(x, projected)
        y = block.ln_2(x)
    fc, proj = block.mlp.c_fc, block.mlp.c_proj
    hidden = _activate(block.mlp.gelu, linear(y, fc.weight, fc.bias))
    return add(x, block.ls_2(linear(hidden, proj.weight, proj.bias)))


def _activate(activation: nn.Module, x: Tensor) -> Tensor:
    """The MLP's non-linearity. Without gradients QuickGELU is x sigmoid(a x) = silu(a x) / a."""
    if isinstance(activation, QuickGELU) and may_overwrite():
        if fused.half_on_cuda(x):
            return fused.quick_gelu(x)
        return F.silu(x.mul_(1.702), inplace=True).mul_(1 / 1.702)
    return gelu(x) if type(activation) is nn.GELU else activation(x)

"""Class aggregation (paper, section 3.4): attention over the classes at one position.

B images, T classes, N positions, H and W their grid, C channels, G guidance channels.

Every position is seen alone, so the volume is worked off in chunks of positions. As in spatial
aggregation, the half of q and k that sees only the text is computed once a vocabulary. The 2024
model fills the class sequence up with a learned token; all of its copies have the same key and
value, so that one of them is computed and weighted by their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.errors import CATSegError
from cat_seg.modeling import fused
from cat_seg.modeling.chunks import chunk_length, map_chunks
from cat_seg.modeling.layers import Linear, add, linear, may_overwrite


class ClassAggregation(nn.Module):
    """Attention over classes, on a pooled map, guided by the text (`attention`)."""

    def __init__(
        self,
        *,
        dim: int,
        guidance_dim: int,
        num_heads: int,
        attention_type: str = "linear",
        pooling: tuple[int, int] = (1, 1),
        test_pooling: tuple[int, int] | None = None,
        padding: int = 0,
    ) -> None:
        """
        Args:
            dim: C.
            guidance_dim: G, or 0 for no guidance.
            num_heads: of the attention.
            attention_type: "linear" or "full".
            pooling: average pooling of the map before the attention.
            test_pooling: the same in evaluation mode; None for `pooling`.
            padding: length to which shorter class sequences are filled up; 0 for none.
        """
        super().__init__()
        self.pooling = pooling
        self.test_pooling = test_pooling or pooling
        self.padding = padding
        self.attention = GuidedClassAttention(dim, guidance_dim, num_heads, attention_type)
        self.MLP = nn.Sequential(Linear(dim, 4 * dim), nn.ReLU(inplace=True), Linear(4 * dim, dim))
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        if padding > 0:
            self.padding_tokens = nn.Parameter(torch.zeros(1, 1, dim))
            self.padding_guidance = nn.Parameter(torch.zeros(1, 1, guidance_dim))

    def forward(
        self,
        x: Tensor,
        text: Tensor | None,
        *,
        recompute: bool = False,
        weights: Tensor | None = None,
    ) -> Tensor:
        """(B, T, H, W, C) -> the same shape, overwritten where no gradient is needed.

        Args:
            x: the volume, owned by the caller.
            text: (T, G) guidance.
            recompute: trade time for memory in training.
            weights: (T,) how many classes each one stands for; None for itself alone.
        """
        B, T, H, W, C = x.shape
        guided = self.attention.guide(text)  # (T, 3 C) or (3 C,)
        pooling = self.pooling if self.training else self.test_pooling
        fast = pooling == (1, 1) and weights is None and self._fused_applies(x)
        bytes_each = B * T * C * (6 if fast else 16)  # of q, k and v, or the MLP, at one position

        def chunks(function: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
            length = chunk_length(bytes_each, x.device) if may_overwrite() else volume.shape[2]
            return map_chunks(function, volume, 2, length, recompute=recompute)

        if fast:
            dtype = fused.autocast_dtype(x.device)
            return chunks(lambda p: self.fused(p, guided, dtype), x.flatten(2, 3)).view(x.shape)
        if pooling == (1, 1):
            x = x.flatten(2, 3)
            x = chunks(lambda p: add(p, self.branch(p.float(), guided, weights)), x)
            return x.view(B, T, H, W, C)
        pooled = F.avg_pool2d(rearrange(x.float(), "B T H W C -> (B T) C H W"), pooling)
        h = pooled.shape[-2]
        pooled = rearrange(pooled, "(B T) C h w -> B T (h w) C", B=B).contiguous()
        pooled = chunks(lambda p: self.branch(p, guided, weights), pooled)
        pooled = rearrange(pooled, "B T (h w) C -> (B T) C h w", h=h)
        branch = F.interpolate(pooled, (H, W), mode="bilinear", align_corners=True)
        return x + rearrange(branch, "(B T) C H W -> B T H W C", B=B).to(x.dtype)

    def fused(self, x: Tensor, guided: Tensor, dtype: torch.dtype) -> Tensor:
        """x + branch(x) by fused kernels, products in `dtype`, into x: (B, T, N, C)."""
        attention = self.attention
        guided = guided[:, None] if guided.dim() == 2 else guided  # the same at every position
        copies, token, token_guidance = self._padding(x.shape[1])
        pad = None
        if token is not None and token_guidance is not None:
            pad = attention.pad(token, token_guidance)
        qkv = fused.norm_linear(x, self.norm1, attention.weight(), guided, dtype)
        attended = fused.class_attention(qkv, attention.num_heads, pad, copies)
        fc1, _, fc2 = self.MLP
        assert isinstance(fc1, nn.Linear) and isinstance(fc2, nn.Linear)
        return fused.residual_mlp(x, attended, self.norm2, fc1, fc2)

    def _fused_applies(self, x: Tensor) -> bool:
        linear = self.attention.attention_type == "linear"
        return linear and fused.applies(x, self.attention.num_heads)

    def streams(self) -> bool:
        """Whether `sums` and `part` can do what `forward` does."""
        pooling = self.pooling if self.training else self.test_pooling
        return pooling == (1, 1) and self.attention.attention_type == "linear"

    def sums(self, x: Tensor, text: Tensor | None) -> tuple[Tensor, Tensor]:
        """What some classes, (B, T, H, W, C), add to the two sums that all classes see."""
        x = self.norm1(x.float().flatten(2, 3).transpose(1, 2).contiguous())
        C = x.shape[-1]
        k, v = self.attention.project(x, self.attention.guide(text), slice(C, 3 * C))
        return attention_sums(k, v)

    def padding_sums(self, T: int) -> tuple[Tensor, Tensor] | None:
        """What the tokens add that fill T classes up; None if there are none."""
        copies, token, guidance = self._padding(T)
        if token is None or guidance is None:
            return None
        heads = self.attention.num_heads
        k, v = (x.view(heads, 1, -1) for x in self.attention.pad(token, guidance))
        key_value, key_sum = attention_sums(k, v)
        return copies * key_value, copies * key_sum

    def part(self, x: Tensor, text: Tensor | None, sums: tuple[Tensor, Tensor]) -> Tensor:
        """`forward` of some classes, (B, T, H, W, C), when the sums of all are known."""
        rows, guided = x.float().flatten(2, 3), self.attention.guide(text)
        return add(rows, self.branch(rows, guided, sums=sums)).view(x.shape)

    def branch(
        self,
        x: Tensor,
        guided: Tensor,
        weights: Tensor | None = None,
        sums: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(B, T, N, C) -> the same shape: attention and MLP, each with its residual."""
        x = x.transpose(1, 2).contiguous()  # (B, N, T, C)
        T = x.shape[2] if weights is None else round(float(weights.sum()))
        padding = self._padding(T) if sums is None else (0, None, None)
        x = x + self.attention(self.norm1(x), guided, *padding, weights, sums)
        return add(x, self.MLP(self.norm2(x))).transpose(1, 2)

    def _padding(self, T: int) -> tuple[int, Tensor | None, Tensor | None]:
        """How many padding tokens T classes need, the token (normalised) and its guidance."""
        if self.padding <= T:
            return 0, None, None
        return self.padding - T, self.norm1(self.padding_tokens)[0, 0], self.padding_guidance[0, 0]


class GuidedClassAttention(nn.Module):
    """Multi-head attention over classes, linear (Katharopoulos et al., 2020) or softmax."""

    def __init__(self, dim: int, guidance_dim: int, num_heads: int, attention_type: str) -> None:
        super().__init__()
        if attention_type not in ("linear", "full"):
            raise CATSegError(f'ATTENTION_TYPE is {attention_type!r}; expected "linear" or "full".')
        self.num_heads = num_heads
        self.attention_type = attention_type
        self.q = nn.Linear(dim + guidance_dim, dim)
        self.k = nn.Linear(dim + guidance_dim, dim)
        self.v = nn.Linear(dim, dim)

    def guide(self, text: Tensor | None) -> Tensor:
        """What the text adds to q, k and v at every position: (T, 3 C), or (3 C,) without it."""
        if text is None:
            return torch.cat([self.q.bias, self.k.bias, self.v.bias])
        C = self.v.in_features
        q = linear(text, self.q.weight[:, C:], self.q.bias)
        k = linear(text, self.k.weight[:, C:], self.k.bias)
        return torch.cat([q, k, self.v.bias.to(q.dtype).expand_as(q)], dim=-1)

    def weight(self) -> Tensor:
        """Of q, k and v over x, (3 C, C)."""
        C = self.v.in_features
        return torch.cat([self.q.weight[:, :C], self.k.weight[:, :C], self.v.weight])

    def pad(self, token: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value of the padding token, (C,) each."""
        return self.k(torch.cat([token, guidance])), self.v(token)

    def forward(
        self,
        x: Tensor,
        guided: Tensor,
        copies: int = 0,
        token: Tensor | None = None,
        token_guidance: Tensor | None = None,
        weights: Tensor | None = None,
        sums: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """(B, N, T, C) -> the same shape.

        Args:
            x: normalised.
            guided: see `guide`.
            copies: how often the padding token stands in the sequence.
            token: (C,), normalised.
            token_guidance: (G,)
            weights: (T,) how often each class stands in the sequence; None for once.
            sums: of the whole sequence, of which these classes are a part; see `attention_sums`.
        """
        if sums is not None:
            (q,) = self.project(x, guided, slice(0, x.shape[-1]))
            y = attend(q, *sums)
            return rearrange(y, "(B N) heads T d -> B N T (heads d)", B=x.shape[0])
        q, k, v = self.project(x, guided, slice(0, 3 * x.shape[-1]))
        pad: tuple[Tensor, Tensor] | None = None
        if copies and token is not None and token_guidance is not None:
            key, value = self.pad(token, token_guidance)
            pad = (
                rearrange(key, "(heads d) -> heads 1 d", heads=self.num_heads),
                rearrange(value, "(heads d) -> heads 1 d", heads=self.num_heads),
            )
        attention = linear_attention if self.attention_type == "linear" else full_attention
        y = attention(q, k, v, pad, copies, weights)
        return rearrange(y, "(B N) heads T d -> B N T (heads d)", B=x.shape[0])

    def project(self, x: Tensor, guided: Tensor, channels: slice) -> tuple[Tensor, ...]:
        """q, k and v, or those of them within the channels, of (B, N, T, C), by head.

        Returns:
            (B N, heads, T, d) each.
        """
        y = linear(x, self.weight()[channels]).add_(guided[..., channels])
        return rearrange(
            y,
            "B N T (n heads d) -> n (B N) heads T d",
            n=y.shape[-1] // x.shape[-1],
            heads=self.num_heads,
        ).unbind()


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pad: tuple[Tensor, Tensor] | None,
    copies: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Attention with the feature map elu + 1: two sums over the sequence serve every query.

    The published code divides v by the length before and multiplies after, which cancels.

    Args:
        q, k, v: (..., heads, T, d)
        pad: key and value, (heads, 1, d), that stand in the sequence another `copies` times.
        weights: (T,) how often each key and value stands in the sequence; None for once.
    """
    key_value, key_sum = attention_sums(k, v, weights)
    if pad is not None:
        of_pad = attention_sums(*pad)
        key_value, key_sum = key_value + copies * of_pad[0], key_sum + copies * of_pad[1]
    return attend(q, key_value, key_sum)


def attention_sums(k: Tensor, v: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All that linear attention takes of a sequence: (..., d, d) and (..., 1, d)."""
    k = feature_map(k)
    if weights is not None:
        k = k * weights[:, None]
    return k.transpose(-1, -2) @ v, k.sum(-2, keepdim=True)


def attend(q: Tensor, key_value: Tensor, key_sum: Tensor) -> Tensor:
    """Linear attention of queries, (..., heads, T, d), to a sequence of which sums are known."""
    q = feature_map(q)
    normaliser = (q * key_sum).sum(-1, keepdim=True) + 1e-6
    return (q @ key_value) / normaliser


def feature_map(x: Tensor) -> Tensor:
    """elu(x) + 1: exp(x) below zero, x + 1 above. Without gradients by exp, faster than expm1."""
    if not may_overwrite():
        return F.elu(x) + 1
    return x.clamp(max=0).exp_().add_(x.clamp(min=0))


def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pad: tuple[Tensor, Tensor] | None,
    copies: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Softmax attention; n equal keys weigh as much as one whose score is higher by log n."""
    bias = None if weights is None else weights.to(q.dtype).log()[None]
    if pad is not None:
        k = torch.cat([k, pad[0].to(k.dtype).expand(len(k), -1, -1, -1)], dim=-2)
        v = torch.cat([v, pad[1].to(v.dtype).expand(len(v), -1, -1, -1)], dim=-2)
        last = q.new_full((1, 1), math.log(copies))
        every = q.new_zeros(1, k.shape[-2] - 1) if bias is None else bias
        bias = torch.cat([every, last], dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

"""Spatial aggregation (paper, section 3.3): two Swin blocks over the positions of one class.

B images, T classes, H and W positions, C channels, G guidance channels, N positions of a region.

Every class is seen alone, so any chunk of the classes can be given. Two identities keep it fast
and exact. A weight over [x, guidance] is applied in two halves, and the half over the guidance,
which no class changes, once an image. A shifted window parts, by its mask, into rectangles that
never see each other; each rectangle is attended by itself, so that nothing is rolled or masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.errors import CATSegError
from cat_seg.modeling import fused
from cat_seg.modeling.layers import Linear, add, gelu, linear


class SpatialAggregation(nn.Module):
    """Windowed, then shifted-window attention, guided by the image (`swin_block`)."""

    def __init__(
        self, *, dim: int, guidance_dim: int, grid: tuple[int, int], num_heads: int, window: int
    ) -> None:
        """
        Args:
            dim: C.
            guidance_dim: G, or 0 for no guidance.
            grid: H, W.
            num_heads: of the attention.
            window: side of a window, in positions. A map that is not larger is one window.
        """
        super().__init__()
        shift = window // 2
        if min(grid) <= window:
            window, shift = min(grid), 0
        self.block_1 = SwinBlock(dim, guidance_dim, num_heads, window_regions(grid, window, 0))
        self.block_2 = SwinBlock(dim, guidance_dim, num_heads, window_regions(grid, window, shift))
        self.guidance_norm = nn.LayerNorm(guidance_dim) if guidance_dim > 0 else None

    def guide(self, guidance: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the guidance adds to q, k and v of the two blocks, for all classes of an image.

        Args:
            guidance: (B, H, W, G)

        Returns:
            two of (B, 1, H, W, 3 C), or (3 C,) without guidance.
        """
        if guidance is not None and self.guidance_norm is not None:
            guidance = self.guidance_norm(guidance)
        return self.block_1.attn.guide(guidance), self.block_2.attn.guide(guidance)

    def forward(self, x: Tensor, guided: tuple[Tensor, Tensor]) -> Tensor:
        """(B, T, H, W, C) -> the same shape."""
        return self.block_2(self.block_1(x, guided[0]), guided[1])


class SwinBlock(nn.Module):
    """Attention in regions and an MLP, both on normalised input and with a residual."""

    def __init__(
        self, dim: int, guidance_dim: int, num_heads: int, regions: Sequence[Region]
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GuidedRegionAttention(dim, guidance_dim, num_heads, regions)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, x: Tensor, guided: Tensor) -> Tensor:
        if fused.applies(x, self.attn.num_heads):
            return self.fused(x, guided, fused.autocast_dtype(x.device))
        x = x.float()
        x = add(x, self.attn(self.norm1(x), guided))
        return add(x, self.mlp(self.norm2(x)))

    def fused(self, x: Tensor, guided: Tensor, dtype: torch.dtype) -> Tensor:
        """The same by fused kernels, products in `dtype`, into x; see `cat_seg.modeling.fused`."""
        attn, mlp = self.attn, self.mlp
        rows, grid = x.flatten(2, 3), (x.shape[2], x.shape[3])
        guided = guided.flatten(2, 3) if guided.dim() == 5 else guided
        qkv = fused.norm_linear(rows, self.norm1, attn.weight(), guided, dtype)
        attended = fused.region_attention(qkv, attn.regions, grid, attn.num_heads)
        fused.residual_mlp(rows, attended, self.norm2, mlp.fc1, mlp.fc2, proj=attn.proj)
        return x


class GuidedRegionAttention(nn.Module):
    """Multi-head attention within regions; q and k also see the guidance."""

    def __init__(
        self, dim: int, guidance_dim: int, num_heads: int, regions: Sequence[Region]
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.regions = regions
        self.q = nn.Linear(dim + guidance_dim, dim)
        self.k = nn.Linear(dim + guidance_dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def guide(self, guidance: Tensor | None) -> Tensor:
        """See `SpatialAggregation.guide`."""
        if guidance is None:
            return torch.cat([self.q.bias, self.k.bias, self.v.bias])
        C = self.v.in_features
        q = linear(guidance, self.q.weight[:, C:], self.q.bias)
        k = linear(guidance, self.k.weight[:, C:], self.k.bias)
        return torch.cat([q, k, self.v.bias.to(q.dtype).expand_as(q)], dim=-1)[:, None]

    def weight(self) -> Tensor:
        """Of q, k and v over x, (3 C, C)."""
        C = self.v.in_features
        return torch.cat([self.q.weight[:, :C], self.k.weight[:, :C], self.v.weight])

    def forward(self, x: Tensor, guided: Tensor) -> Tensor:
        """(B, T, H, W, C) -> the same shape."""
        B, T, _, _, C = x.shape
        qkv = linear(x, self.weight()).add_(guided)  # (B, T, H, W, 3 C)
        out = qkv.new_empty(x.shape)
        for rows, columns in self.regions:
            region = qkv[:, :, rows, columns]
            shape = region.shape[2:4]
            q, k, v = region.reshape(B * T, -1, 3, self.num_heads, C // self.num_heads).unbind(2)
            attended = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            )  # (B T, heads, N, C / heads)
            out[:, :, rows, columns] = attended.transpose(1, 2).reshape(B, T, *shape, C)
        return self.proj(out)


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


Region = tuple[slice, slice]  # rows, columns


def window_regions(grid: tuple[int, int], window: int, shift: int) -> list[Region]:
    """The rectangles within which positions see each other in (shifted) window attention.

    Raises:
        CATSegError: if the grid does not consist of whole windows.
    """
    if grid[0] % window or grid[1] % window:
        raise CATSegError(
            f"A map of {grid[0]} x {grid[1]} positions (FEATURE_RESOLUTION) does not part into "
            f"windows of {window} x {window} (WINDOW_SIZES): both sides must be multiples of it."
        )

    def spans(size: int) -> list[slice]:
        cuts = [0, *range(shift or window, size, window), size]
        return [slice(a, b) for a, b in pairwise(cuts)]

    return [(rows, columns) for rows in spans(grid[0]) for columns in spans(grid[1])]

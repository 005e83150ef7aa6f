"""Swin Transformer as image guidance, on timm's blocks (arXiv 2103.14030).

B images, C channels, H x W positions of a map, N = window * window positions of a window.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import PatchEmbed
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cat_seg.errors import CATSegError
from cat_seg.modeling.layers import use_fast_layers


class SwinTransformer(nn.Module):
    """Maps `res2`, `res3`, ... of strides 4, 8, ... for images of any size.

    With `patch_size` other than 4 the strides are its multiples.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        embed_dim: int = 128,
        depths: Sequence[int] = (2, 2, 18),
        num_heads: Sequence[int] = (4, 8, 16),
        window_size: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        absolute_positions: bool = False,
        patch_norm: bool = True,
        pretrain_image_size: int = 384,
        patch_size: int = 4,
        out_features: Sequence[str] = ("res2", "res3", "res4"),
        use_checkpoint: bool = False,
    ) -> None:
        """Build the network.

        Args:
            in_channels: Channels of the image.
            embed_dim: Width of the first stage; it doubles with each stage.
            depths: Blocks of each stage.
            num_heads: Attention heads of each stage.
            window_size: Side of a window, in positions.
            mlp_ratio: Hidden width of a block's MLP over its width.
            qkv_bias: Whether queries, keys and values have a bias.
            qk_scale: Factor of the attention logits; by default (a head's width) ** -0.5.
            drop_rate: Dropout after the patch embedding, projections and MLPs.
            attn_drop_rate: Dropout of attention weights.
            drop_path_rate: Stochastic depth of the last block; it rises linearly from 0.
            absolute_positions: Whether to add learned position embeddings.
            patch_norm: Whether a LayerNorm follows the patch embedding.
            pretrain_image_size: Image side that sets the size of the position embeddings.
            patch_size: Side of a patch, in pixels.
            out_features: Maps to return; each has a LayerNorm of its own.
            use_checkpoint: Whether to recompute each block in the backward pass, to save memory.

        Raises:
            CATSegError: Sizes do not fit together.
        """
        super().__init__()
        if len(depths) != len(num_heads):
            raise CATSegError(
                f"MODEL.SWIN.DEPTHS {list(depths)} and MODEL.SWIN.NUM_HEADS {list(num_heads)} must "
                "have one number a stage each"
            )
        widths = [embed_dim * 2**i for i in range(len(depths))]
        for width, heads in zip(widths, num_heads, strict=True):
            if width % heads:
                raise CATSegError(
                    f"MODEL.SWIN.NUM_HEADS {list(num_heads)}: {heads} heads cannot share the "
                    f"{width} channels that MODEL.SWIN.EMBED_DIM {embed_dim} gives their stage"
                )
        names = [f"res{i + 2}" for i in range(len(depths))]
        if unknown := set(out_features) - set(names):
            raise CATSegError(
                f"MODEL.SWIN.OUT_FEATURES {list(out_features)}: {sorted(unknown)} not among the "
                f"maps of {len(depths)} stages, {names}"
            )
        self.out_features = [name for name in names if name in out_features]
        self.channels = dict(zip(names, widths, strict=True))
        self.strides = {name: patch_size * 2**i for i, name in enumerate(names)}
        self.use_checkpoint = use_checkpoint

        self.patch_embed = PatchEmbed(
            img_size=None,
            patch_size=patch_size,
            in_chans=in_channels,
            embed_dim=embed_dim,
            norm_layer=nn.LayerNorm if patch_norm else None,
            output_fmt="NHWC",
            strict_img_size=False,
            dynamic_img_pad=True,
        )
        self.absolute_pos_embed: nn.Parameter | None = None
        if absolute_positions:
            grid = pretrain_image_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, grid, grid))
        self.pos_drop = nn.Dropout(drop_rate)

        last = max(sum(depths) - 1, 1)
        self.layers = nn.ModuleList()
        for i, (depth, width, heads) in enumerate(zip(depths, widths, num_heads, strict=True)):
            blocks = [
                SwinBlock(
                    width,
                    heads,
                    window_size,
                    shift=window_size // 2 if j % 2 else 0,
                    qk_scale=qk_scale,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    proj_drop=drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=drop_path_rate * (sum(depths[:i]) + j) / last,
                )
                for j in range(depth)
            ]
            self.layers.append(
                SwinStage(blocks, PatchMerging(width) if width < widths[-1] else None)
            )
            if names[i] in self.out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(width))
        self.apply(_init_weights)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Compute the maps of an image.

        Args:
            image: (B, 3, H, W), normalised.

        Returns:
            For each name in `out_features`, (B, C, H / stride, W / stride), sizes rounded up.
        """
        x = self.patch_embed(image)  # (B, H/4, W/4, C)
        if self.absolute_pos_embed is not None:
            positions = F.interpolate(self.absolute_pos_embed, x.shape[1:3], mode="bicubic")
            x = x + rearrange(positions, "b c h w -> b h w c")
        x = self.pos_drop(x)
        outputs = {}
        for i, stage in enumerate(cast(Iterable[SwinStage], self.layers)):
            for block in stage.blocks:
                recompute = self.use_checkpoint and self.training
                x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            name = f"res{i + 2}"
            if name in self.out_features:
                norm = self.get_submodule(f"norm{i}")
                outputs[name] = rearrange(norm(x), "b h w c -> b c h w").contiguous()
            if stage.downsample is not None:
                x = stage.downsample(x)
        return outputs


class SwinStage(nn.Module):
    """Blocks at one resolution, and what halves it for the next stage."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class SwinBlock(SwinTransformerBlock):
    """timm's block for maps of any size, with fused attention.

    The window and shift never shrink with the map. Maps are padded to whole windows *before* they
    are shifted (timm shifts first), as the released weights were trained.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        *,
        shift: int,
        qk_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Build the block; `kwargs` are those of timm's."""
        super().__init__(
            dim,
            input_resolution=(window_size, window_size),  # unused: the map's own size counts
            num_heads=num_heads,
            window_size=window_size,
            shift_size=shift,
            always_partition=True,
            dynamic_mask=True,
            **kwargs,
        )
        use_fast_layers(self)
        # Fused attention has a fixed scale in timm.
        self.attn.fused_attn = qk_scale is None  # type: ignore[misc]
        self.attn.scale = qk_scale or self.attn.scale

    def _attn(self, x: Tensor) -> Tensor:
        """Window attention, called by timm's `forward`: (B, H, W, C) -> (B, H, W, C)."""
        _, height, width, _ = x.shape
        window, _ = self.window_size
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        return super()._attn(x)[:, :height, :width]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

"""A decoder that starts from coarse logits and adds, at each finer resolution, what they lack.

B images, T classes, H and W positions, C channels of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.model_config import ModelConfig
from cat_seg.registry import register


@register("decoder", "gradual")
class GradualDecoder(nn.Module):
    """In place of the two published blocks and the head."""

    def __init__(self, config: ModelConfig, *, width: int = 32) -> None:
        """
        Args:
            config: of the whole model.
            width: channels of both steps.
        """
        super().__init__()
        guides = config.decoder_guidance_dims if config.guidance != "none" else (0, 0)
        self.coarse = nn.Conv2d(config.hidden_dim, 1, kernel_size=1)
        self.steps = nn.ModuleList(
            [Step(config.hidden_dim, width, guides[0]), Step(width, width, guides[1])]
        )
        self.widest = 16 * width  # channels a coarse position at most has: sizes the chunks

    def forward(self, x: Tensor, guidance: Sequence[Tensor | None]) -> Tensor:
        """(B, T, H, W, C) and maps of 2 H x 2 W and 4 H x 4 W -> logits (B, T, 4 H, 4 W)."""
        B, T = x.shape[:2]
        y = rearrange(x.float(), "B T H W C -> (B T) C H W")
        logits = self.coarse(y)
        for step, guide in zip(self.steps, guidance, strict=True):
            y, finer = step(y, guide, T)
            logits = twice(logits) + finer
        return rearrange(logits, "(B T) 1 h w -> B T h w", B=B)


class Step(nn.Module):
    """Twice the resolution, and logits of what the coarser ones lack."""

    def __init__(self, in_dim: int, out_dim: int, guidance_dim: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_dim, out_dim, kernel_size=1)
        self.guide = nn.Conv2d(guidance_dim, out_dim, kernel_size=1) if guidance_dim else None
        self.smooth = nn.Conv2d(out_dim, out_dim, kernel_size=3, padding=1)
        self.norm = nn.GroupNorm(1, out_dim)
        self.head = nn.Conv2d(out_dim, 1, kernel_size=3, padding=1)
        nn.init.zeros_(self.head.weight)  # at first nothing is lacking

    def forward(self, x: Tensor, guidance: Tensor | None, T: int) -> tuple[Tensor, Tensor]:
        """(B T, C, h, w), image-major -> (B T, C', 2 h, 2 w) and (B T, 1, 2 h, 2 w)."""
        x = twice(self.mix(x))
        if self.guide is not None and guidance is not None:
            x = x + self.guide(guidance).repeat_interleave(T, dim=0)
        x = F.gelu(self.norm(self.smooth(x)))
        return x, self.head(x)


def twice(x: Tensor) -> Tensor:
    """Upsample (B, C, h, w) to (B, C, 2 h, 2 w)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

"""A layer in which positions and classes attend to the same volume, beside each other.

The published layer is x -> x + s(x), then x -> x + c(x), with s over positions and c over classes.
Here it is x -> x + g s(x) + (1 - g) c(x), with a share g in 0..1 learned for each channel.

B images, T classes, H and W positions, C channels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from cat_seg.model_config import ModelConfig
from cat_seg.modeling.aggregator.class_aggregation import ClassAggregation
from cat_seg.modeling.aggregator.spatial_aggregation import SpatialAggregation
from cat_seg.modeling.chunks import map_chunks
from cat_seg.registry import register


@register("layer", "parallel")
class ParallelLayer(nn.Module):
    """Called as `cat_seg.modeling.aggregator.aggregator.AggregatorLayer` is."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.positions = SpatialAggregation(
            dim=config.hidden_dim,
            guidance_dim=config.guidance_dim if config.guidance != "none" else 0,
            grid=(config.grid[0], config.grid[1]),
            num_heads=config.num_heads,
            window=config.window,
        )
        self.classes = ClassAggregation(
            dim=config.hidden_dim,
            guidance_dim=config.text_guidance_dim,
            num_heads=config.num_heads,
            attention_type=config.attention_type,
            padding=config.class_padding,
        )
        self.gate = nn.Parameter(torch.zeros(config.hidden_dim))  # g = sigmoid(gate)

    def forward(
        self,
        x: Tensor,
        appearance: Tensor | None,
        words: Tensor | None,
        *,
        length: int = 1 << 30,
        recompute: bool = False,
        weights: Tensor | None = None,
    ) -> Tensor:
        """(B, T, H, W, C) -> the same shape."""
        block = partial(self.positions, guided=self.positions.guide(appearance))
        # Without gradients both overwrite what they are given, to save memory.
        spatial = map_chunks(block, x.clone(), dim=1, length=length, recompute=recompute)
        across = self.classes(x, words, recompute=recompute, weights=weights)
        return torch.lerp(across, spatial, self.gate.sigmoid().to(x.dtype))

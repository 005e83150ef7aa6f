"""The cost volume of an encoder that knows no words, such as DINOv2's.

Its features are projected to the space of CLIP's texts by a learned layer and compared with the
same texts, so that the aggregator gets two volumes to weigh against each other.

B images, C channels of the encoder, D width of CLIP's features, H and W positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from cat_seg.model_config import ModelConfig
from cat_seg.modeling.clip import Encoder
from cat_seg.modeling.guidance.timm_backbone import TimmBackbone
from cat_seg.modeling.predictor import CATSegPredictor
from cat_seg.modeling.sliding_window import resize
from cat_seg.registry import register


@register("volume", "projected")
class ProjectedVolume(nn.Module):
    """A volume by a backbone of timm."""

    text_dim = 0  # CLIP's texts serve

    def __init__(self, config: ModelConfig, *, model: str, dim: int, **settings: Any) -> None:
        """
        Args:
            config: of the whole model.
            model, settings: see `TimmBackbone`, which also brings published weights.
            dim: D.
        """
        super().__init__()
        self.grid, self.image_dim = config.grid, dim
        self.encoder = TimmBackbone(config, model=model, **settings)
        self.projection = nn.Conv2d(self.encoder.channels["res4"], dim, kernel_size=1)

    def encode_image(self, predictor: CATSegPredictor, images: Tensor) -> Tensor:
        """(B, 3, h, w), normalised for CLIP, of any size -> (B, D, H, W)."""
        stride = self.encoder.strides["res4"]
        size = (self.grid[0] * stride, self.grid[1] * stride)
        return self.projection(self.encoder(resize(images, size))["res4"])

    def encode_text(self, embed: Callable[[Encoder], Tensor]) -> Tensor:
        """Never called, as `text_dim` is 0."""
        raise NotImplementedError

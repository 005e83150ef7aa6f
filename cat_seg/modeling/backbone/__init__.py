"""Guidance backbones of the 2023 generation."""

from cat_seg.modeling.backbone.swin import D2SwinTransformer

__all__ = ["D2SwinTransformer"]

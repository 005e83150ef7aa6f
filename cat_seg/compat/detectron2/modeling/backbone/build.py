"""A backbone by the name in the config."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from ...layers import ShapeSpec
from ...utils.registry import Registry
from ..registered import registered
from .backbone import Backbone

# Holds callables (cfg, input ShapeSpec) -> Backbone.
BACKBONE_REGISTRY = Registry("BACKBONE")


def build_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """Build the backbone that MODEL.BACKBONE.NAME names.

    Raises:
        ValueError: if no backbone is registered under that name.
    """
    build = registered(BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME)
    backbone = build(cfg, input_shape or ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    assert isinstance(backbone, Backbone), type(backbone)
    return backbone

"""The guidance backbones of the 2023 generation, registered with detectron2."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from cat_seg.modeling.guidance.swin import SwinTransformer
from cat_seg.plugin import resnet as _resnet  # noqa: F401  (registers where detectron2 is missing)
from cat_seg.plugin.config import swin_arguments


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer, Backbone):
    """The library's Swin Transformer as a detectron2 backbone (MODEL.SWIN)."""

    @configurable
    def __init__(self, **settings: Any) -> None:
        """Take the arguments of `SwinTransformer`."""
        super().__init__(**settings)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        """Read MODEL.SWIN."""
        return {"in_channels": input_shape.channels, **swin_arguments(cfg)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each map."""
        return {
            name: ShapeSpec(channels=self.channels[name], stride=self.strides[name])
            for name in self.out_features
        }

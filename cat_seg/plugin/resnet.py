"""`build_resnet_backbone` of the configs, for when detectron2's own is not there."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone

from cat_seg.errors import CATSegError
from cat_seg.modeling.guidance.resnet import ResNet, ResNetConfig

# What the published model leaves at detectron2's defaults, and the library's ResNet has built in.
FIXED = {
    "NORM": "FrozenBN",
    "NUM_GROUPS": 1,
    "WIDTH_PER_GROUP": 64,
    "STEM_OUT_CHANNELS": 64,
    "RES2_OUT_CHANNELS": 256,
    "RES5_DILATION": 1,
    "DEFORM_ON_PER_STAGE": [False, False, False, False],
}


class ResNetBackbone(ResNet, Backbone):
    """The library's ResNet as a detectron2 backbone."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of each map."""
        return {
            name: ShapeSpec(channels=self.channels[name], stride=self.strides[name])
            for name in self.channels
        }


def build_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build the ResNet of MODEL.RESNETS.

    Raises:
        CATSegError: The config asks for a variant that only detectron2 has.
    """
    resnets = cfg.MODEL.RESNETS
    for key, value in FIXED.items():
        if resnets[key] != value:
            raise CATSegError(
                f"MODEL.RESNETS.{key} is {resnets[key]!r}; without detectron2 only {value!r} is "
                "supported. Change it or install detectron2."
            )
    return ResNetBackbone(
        ResNetConfig(
            depth=resnets.DEPTH,
            stride_in_1x1=resnets.STRIDE_IN_1X1,
            out_features=tuple(resnets.OUT_FEATURES),
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        )
    )


if "build_resnet_backbone" not in BACKBONE_REGISTRY:
    BACKBONE_REGISTRY.register(build_resnet_backbone)

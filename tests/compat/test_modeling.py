"""Registries, shapes and sizes."""

from __future__ import annotations

import pytest
from torch import nn

import cat_seg.compat
from tests.compat.implementations import IS_REAL, Implementation


def test_models_are_built_by_name(d2):
    modeling = d2("modeling")
    cfg = d2("config").get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "CompatBackbone"
    cfg.MODEL.META_ARCHITECTURE = "CompatModel"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "CompatHead"
    shape = d2("layers").ShapeSpec

    class CompatBackbone(modeling.Backbone):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self._out_features = ["a"]
            self._out_feature_channels = {"a": input_shape.channels * 2}
            self._out_feature_strides = {"a": 4}

        def forward(self, image):
            return {"a": image}

    class CompatHead(nn.Module):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.input_shape = input_shape

    class CompatModel(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.backbone = modeling.build_backbone(cfg)
            self.head = modeling.build_sem_seg_head(cfg, self.backbone.output_shape())

    registered = {
        modeling.BACKBONE_REGISTRY: CompatBackbone,
        modeling.SEM_SEG_HEADS_REGISTRY: CompatHead,
        modeling.META_ARCH_REGISTRY: CompatModel,
    }
    for registry, entry in registered.items():
        registry.register(entry)
    try:
        model = modeling.build_model(cfg)
    finally:
        for registry, entry in registered.items():
            del registry._obj_map[entry.__name__]
    assert model.head.input_shape == {"a": shape(channels=6, stride=4)}


@pytest.mark.parametrize(
    ("build", "key"),
    [("build_backbone", "MODEL.BACKBONE.NAME"), ("build_model", "MODEL.META_ARCHITECTURE")],
)
def test_detectron2s_own_models_need_the_real_one(build, key):
    d2 = Implementation("stand_in" if IS_REAL else "detectron2")
    cfg = d2("config").get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_vit_backbone"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    with pytest.raises(ValueError, match=key) as error:
        getattr(d2("modeling"), build)(cfg)
    assert "needs the real detectron2" in str(error.value)
    assert cat_seg.compat.INSTALL_COMMAND in str(error.value)

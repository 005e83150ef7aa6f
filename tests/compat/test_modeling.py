"""Registries, shapes and sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import cat_seg.compat
from tests.compat.implementations import IS_REAL, Implementation


def test_image_list_pads_and_gives_back(d2):
    images = [torch.rand(3, 5, 9), torch.rand(3, 8, 4)]
    batch = d2("structures").ImageList.from_tensors(images, size_divisibility=4, pad_value=2.0)
    assert batch.tensor.shape == (2, 3, 8, 12)
    assert batch.image_sizes == [(5, 9), (8, 4)]
    for padded, image in zip(batch.tensor, images, strict=True):
        assert torch.equal(padded[:, : image.shape[1], : image.shape[2]], image)
    assert (batch.tensor[0, :, 5:] == 2).all() and (batch.tensor[1, :, :, 4:] == 2).all()


def test_sem_seg_postprocess_cuts_padding_and_resizes(d2):
    scores = torch.rand(4, 16, 16)
    resized = d2("modeling.postprocessing").sem_seg_postprocess(scores, (10, 12), 20, 30)
    expected = F.interpolate(scores[None, :, :10, :12], (20, 30), mode="bilinear")[0]
    torch.testing.assert_close(resized, expected, rtol=0, atol=0)


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

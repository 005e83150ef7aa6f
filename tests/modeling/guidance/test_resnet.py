"""ResNet against torchvision's, the published names, and detectron2's own where it is installed."""

import pytest
import torch
import torchvision

from cat_seg.errors import CATSegError
from cat_seg.modeling.guidance.resnet import ResNet, ResNetConfig
from tests.golden import checkpoint_rows


@pytest.fixture(scope="module")
def resnet101() -> ResNet:
    """The published architecture, with random norms too."""
    torch.manual_seed(0)
    return randomised(ResNet()).eval()


def randomised(resnet: ResNet) -> ResNet:
    for name, buffer in resnet.named_buffers():
        buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.normal_(0.5, 0.1)
    return resnet


def from_torchvision(name: str) -> str:
    """Translate a tensor's name of torchvision's into ours."""
    if name.startswith(("conv1", "bn1")):
        name = f"stem.{name}"
    for i in range(1, 5):
        name = name.replace(f"layer{i}.", f"res{i + 1}.").replace(f"bn{i}", f"conv{i}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def test_it_computes_what_torchvision_computes(resnet101):
    theirs = torchvision.models.resnet101().eval()
    ours = resnet101.state_dict()
    missing = theirs.load_state_dict(
        {k: ours[from_torchvision(k)] for k in theirs.state_dict() if from_torchvision(k) in ours},
        strict=False,
    )
    assert all(k.startswith(("layer4", "fc")) or "num_batches" in k for k in missing.missing_keys)
    image = torch.randn(2, 3, 70, 50)
    with torch.no_grad():
        maps = resnet101(image)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for name, layer in zip(maps, (theirs.layer1, theirs.layer2, theirs.layer3), strict=True):
            x = layer(x)
            torch.testing.assert_close(maps[name], x, rtol=1e-5, atol=1e-5)
    assert {k: v.shape[1:] for k, v in maps.items()} == {
        "res2": (256, 18, 13),
        "res3": (512, 9, 7),
        "res4": (1024, 5, 4),
    }
    assert resnet101.channels == {k: v.shape[1] for k, v in maps.items()}
    assert resnet101.strides == {"res2": 4, "res3": 8, "res4": 16}


def test_it_has_the_published_tensors_and_no_other(resnet101):
    rows = [r for r in checkpoint_rows("r101_vitb16") if r["key"].startswith("backbone.")]
    published = {r["key"].removeprefix("backbone."): tuple(r["shape"]) for r in rows}
    assert published == {k: tuple(v.shape) for k, v in resnet101.state_dict().items()}
    trainable = {r["key"].removeprefix("backbone.") for r in rows if r["trainable"]}
    assert trainable == {k for k, p in resnet101.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(),
        ResNetConfig(depth=50, stride_in_1x1=True, out_features=("res3", "res5"), freeze_at=2),
    ],
)
def test_it_is_detectron2s(config):
    resnet = pytest.importorskip("detectron2.modeling.backbone.resnet", exc_type=ImportError)
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec

    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = config.depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = config.stride_in_1x1
    cfg.MODEL.RESNETS.OUT_FEATURES = list(config.out_features)
    cfg.MODEL.BACKBONE.FREEZE_AT = config.freeze_at
    theirs = resnet.build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    ours = randomised(ResNet(config)).eval()
    theirs.load_state_dict(ours.state_dict())
    trained = {k for k, p in ours.named_parameters() if p.requires_grad}
    assert trained == {k for k, p in theirs.named_parameters() if p.requires_grad}
    shapes = {k: (v.channels, v.stride) for k, v in theirs.output_shape().items()}
    assert shapes == {k: (ours.channels[k], ours.strides[k]) for k in ours.channels}
    image = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        expected, maps = theirs(image), ours(image)
    assert list(maps) == list(expected)
    for name, value in expected.items():
        assert (maps[name] - value).abs().max() <= 1e-6 * value.abs().max()


def test_gradients_reach_every_trained_parameter_and_no_frozen_one():
    resnet = ResNet(ResNetConfig(depth=50, freeze_at=2))
    sum(x.mean() for x in resnet(torch.randn(1, 3, 32, 32)).values()).backward()
    for name, parameter in resnet.named_parameters():
        assert parameter.requires_grad != name.startswith(("stem", "res2")), name
        assert parameter.requires_grad == (
            parameter.grad is not None and bool(parameter.grad.any())
        ), name


@pytest.mark.parametrize(
    "config, message",
    [
        (ResNetConfig(depth=34), "depth 34"),
        (ResNetConfig(out_features=("res1",)), "res1"),
        (ResNetConfig(out_features=()), "out_features"),
    ],
)
def test_unknown_depths_and_maps_are_explained(config, message):
    with pytest.raises(CATSegError, match=message):
        ResNet(config)

"""D2SwinTransformer against the golden run, a reference, and the released names."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone
from PIL import Image

from cat_seg.modeling.guidance.swin import SwinBlock
from cat_seg.plugin.backbone import D2SwinTransformer
from tests.golden import checkpoint_rows, load_golden

TINY = dict(
    embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4, out_features=("res2", "res3")
)


def test_golden_guidance():
    golden = load_golden("swin_tiny")
    swin = golden.recipe["MODEL.SWIN"]
    backbone = D2SwinTransformer(
        embed_dim=swin["EMBED_DIM"],
        depths=swin["DEPTHS"],
        num_heads=swin["NUM_HEADS"],
        window_size=swin["WINDOW_SIZE"],
        out_features=swin["OUT_FEATURES"],
    ).eval()
    backbone.load_state_dict(
        {k[9:]: v for k, v in golden.weights.items() if k.startswith("backbone.")}
    )
    with torch.no_grad():
        maps = backbone(golden_crops(golden))
    for name in swin["OUT_FEATURES"]:
        golden.assert_matches(maps[name], f"guidance_{name}")


def golden_crops(golden):
    """Four tiles and the whole image, at 384 pixels and normalised, from the golden photograph."""
    _, height, width = golden.inference.specs["mapped_image"]["shape"]
    photo = Image.fromarray(golden.inference["image_hwc"].numpy())
    mapped = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))
    image = torch.from_numpy(mapped.copy()).permute(2, 0, 1).float()
    square = F.interpolate(image[None], (640, 640), mode="bilinear", align_corners=False)
    tiles = [square[..., y : y + 384, x : x + 384] for y in (0, 256) for x in (0, 256)]
    whole = F.interpolate(image[None], (384, 384), mode="bilinear", align_corners=False)
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    return (torch.cat([*tiles, whole]) - mean) / std


def plain_block(block: SwinBlock, x: torch.Tensor, window: int, shift: int) -> torch.Tensor:
    """A Swin block with dense attention over the whole padded map; (B, H, W, C)."""
    _, height, width, channels = x.shape
    heads = block.attn.num_heads
    tall, wide = -(-height // window) * window, -(-width // window) * window
    y = F.pad(block.norm1(x), (0, 0, 0, wide - width, 0, tall - height))
    row, column = (
        g.flatten() for g in torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij")
    )
    row, column = (row - shift) % tall, (column - shift) % wide  # where the shift moves them

    def same(f):
        return f(row)[:, None] == f(row), f(column)[:, None] == f(column)

    def wrapped(at, size):  # the shift brought it from the other side
        return at >= size - shift

    allowed = torch.stack(same(lambda at: at // window)).all(0)
    near = (wrapped(row, tall)[:, None] == wrapped(row, tall)) & (
        wrapped(column, wide)[:, None] == wrapped(column, wide)
    )
    side = 2 * window - 1
    dy = (row % window)[:, None] - row % window + window - 1
    dx = (column % window)[:, None] - column % window + window - 1
    bias = block.attn.relative_position_bias_table[dy * side + dx].permute(2, 0, 1)
    bias = bias + torch.where(near, 0.0, -100.0) + torch.where(allowed, 0.0, -torch.inf)
    q, k, v = block.attn.qkv(y).flatten(1, 2).chunk(3, -1)
    outputs = []
    for h in range(heads):
        c = slice(h * channels // heads, (h + 1) * channels // heads)
        weights = (q[..., c] @ k[..., c].mT * (channels // heads) ** -0.5 + bias[h]).softmax(-1)
        outputs.append(weights @ v[..., c])
    z = block.attn.proj(torch.cat(outputs, -1)).unflatten(1, (tall, wide))
    x = x + z[:, :height, :width]
    return x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (4, 4), (3, 2), (5, 11)])
def test_block_equals_dense_attention(size, shift):
    block = SwinBlock(8, 2, 4, shift=shift).double()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), plain_block(block, x, 4, shift))


def test_patch_merging_takes_rows_before_columns():
    merge = D2SwinTransformer(**TINY).layers[0].downsample
    x = torch.randn(1, 5, 6, 8)
    padded = F.pad(x, (0, 0, 0, 0, 0, 1))
    corners = [padded[:, r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))]
    expected = merge.reduction(merge.norm(torch.cat(corners, -1)))
    torch.testing.assert_close(merge(x), expected)


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (4, 9)])
def test_any_size_and_one_equals_batch(size):
    backbone = D2SwinTransformer(**TINY, absolute_positions=True, pretrain_image_size=64).eval()
    torch.nn.init.normal_(backbone.absolute_pos_embed)
    images = torch.randn(3, 3, *size)
    maps = backbone(images)
    for name, spec in backbone.output_shape().items():
        rounded_up = tuple(-(-s // spec.stride) for s in size)
        assert maps[name].shape == (3, spec.channels, *rounded_up)
        torch.testing.assert_close(maps[name][1:2], backbone(images[1:2])[name])


@pytest.mark.parametrize("use_checkpoint", [False, True])
def test_gradients_reach_every_parameter(use_checkpoint):
    backbone = D2SwinTransformer(
        **TINY, absolute_positions=True, use_checkpoint=use_checkpoint
    ).train()
    sum(m.square().sum() for m in backbone(torch.randn(1, 3, 40, 40)).values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_drop_path_rises_linearly():
    backbone = D2SwinTransformer(**{**TINY, "depths": (2, 3)}, drop_path_rate=0.4)
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for stage in backbone.layers
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert [b.shift_size for b in backbone.layers[1].blocks] == [(0, 0), (2, 2), (0, 0)]


def test_released_names_and_shapes(cfg):
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    swin = {"EMBED_DIM": 128, "DEPTHS": [2, 2, 18], "NUM_HEADS": [4, 8, 16], "WINDOW_SIZE": 12,
            "PRETRAIN_IMG_SIZE": 384, "OUT_FEATURES": ["res2", "res3", "res4"]}  # fmt: skip
    for key, value in swin.items():
        setattr(cfg.MODEL.SWIN, key, value)
    with torch.device("meta"):
        backbone = build_backbone(cfg, ShapeSpec(channels=3))
    ours = {f"backbone.{k}": list(v.shape) for k, v in backbone.state_dict().items()}
    released = {r["key"]: r["shape"] for r in checkpoint_rows("swinb_vitl336")}
    assert ours == {
        k: v
        for k, v in released.items()
        if k.startswith("backbone.") and not k.endswith("relative_position_index")
    }
    assert {n: (s.channels, s.stride) for n, s in backbone.output_shape().items()} == {
        "res2": (128, 4), "res3": (256, 8), "res4": (512, 16)
    }  # fmt: skip


@pytest.fixture
def cfg():
    from detectron2.config import get_cfg

    from cat_seg.plugin.config import add_cat_seg_config

    cfg = get_cfg()
    add_cat_seg_config(cfg)
    return cfg


def test_every_key_reaches_the_network(cfg):
    values = {
        "EMBED_DIM": 8, "DEPTHS": [2], "NUM_HEADS": [2], "WINDOW_SIZE": 4, "APE": True,
        "MLP_RATIO": 2.0, "QKV_BIAS": False, "QK_SCALE": 0.2, "DROP_RATE": 0.1,
        "ATTN_DROP_RATE": 0.2, "DROP_PATH_RATE": 0.3, "PATCH_NORM": False, "PATCH_SIZE": 8,
        "PRETRAIN_IMG_SIZE": 64, "OUT_FEATURES": ["res2"], "USE_CHECKPOINT": True,
    }  # fmt: skip
    assert values.keys() == cfg.MODEL.SWIN.keys()
    for key, value in values.items():
        setattr(cfg.MODEL.SWIN, key, value)
    backbone = BACKBONE_REGISTRY.get("D2SwinTransformer")(cfg, ShapeSpec(channels=4))
    block = backbone.layers[0].blocks[1]
    assert backbone.patch_embed.proj.weight.shape == (8, 4, 8, 8)
    assert isinstance(backbone.patch_embed.norm, torch.nn.Identity)
    assert backbone.absolute_pos_embed.shape == (1, 8, 8, 8) and backbone.use_checkpoint
    assert block.mlp.fc1.out_features == 16 and block.attn.qkv.bias is None
    assert block.drop_path1.drop_prob == pytest.approx(0.3)
    assert (backbone.pos_drop.p, block.attn.proj_drop.p, block.attn.attn_drop.p) == (0.1, 0.1, 0.2)


def test_qk_scale():
    default = SwinBlock(8, 2, 4, shift=2)  # heads of 4 channels: 4 ** -0.5
    torch.nn.init.normal_(default.attn.qkv.weight)
    same, other = (SwinBlock(8, 2, 4, shift=2, qk_scale=scale) for scale in (0.5, 0.1))
    for block in (same, other):
        block.load_state_dict(default.state_dict())
    x = torch.randn(1, 6, 6, 8)
    torch.testing.assert_close(same(x), default(x))
    assert not torch.allclose(other(x), default(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (2,)}, "one number a stage"),
        ({"num_heads": (3, 2)}, "3 heads cannot share the 8 channels"),
        ({"out_features": ("res9",)}, "res9.*not among"),
    ],
)
def test_sizes_that_do_not_fit_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        D2SwinTransformer(**{**TINY, **change})

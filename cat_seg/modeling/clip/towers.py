"""Image encoders that are no ViT of open_clip: timm's (SigLIP, EVA, ConvNeXt), CLIP's ResNets.

The dense path is the one that the pooling head implies, which is the head seen by each position as
if it were the whole picture:

* attention pooling (SigLIP, PE, CLIP's ResNets) over one position weighs its value with one: that
  is the value path of the pooling ("Extract Free Dense Labels from CLIP", arXiv 2112.01071);
* average pooling (ConvNeXt, ViTamin, MobileCLIP-S) of one position is that position;
* a class token (EVA, MobileCLIP-B) has attended already, so the last block keeps only the value
  path of its attention, as in `cat_seg.modeling.clip.vision`.

B images, D embedding width, C channels of a layer, h x w positions, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.layers import Format
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from cat_seg.errors import CATSegError
from cat_seg.modeling.autocast import without_autocast
from cat_seg.modeling.clip.stem import ConvStem


class Layer(NamedTuple):
    """What a layer's map has."""

    channels: int
    stride: int  # pixels of the image to one position


def layers_of(visual: Any) -> tuple[Layer, ...]:
    """The layers of an encoder whose maps can be had, shallowest first."""
    if isinstance(visual, ModifiedResNet):
        stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        return tuple(Layer(s[-1].bn3.num_features, 4 * 2**i) for i, s in enumerate(stages))
    if isinstance(visual, VisionTransformer):
        stem = visual.conv1.widths if isinstance(visual.conv1, ConvStem) else ()
        layer = Layer(visual.conv1.out_channels, visual.patch_size[0])
        finer = tuple(Layer(width, 2 ** (i + 1)) for i, width in enumerate(stem))
        return finer + (layer,) * len(visual.transformer.resblocks)
    infos = visual.trunk.feature_info
    return tuple(Layer(info["num_chs"], info["reduction"]) for info in infos)


def check_tower(visual: nn.Module) -> None:
    """Raise a CATSegError that names what is missing if `encode_tower` cannot run this encoder."""
    if isinstance(visual, ModifiedResNet):
        return
    if not isinstance(visual, TimmModel):
        raise CATSegError(
            f"The image encoder is a {type(visual).__name__}; expected open_clip's "
            "VisionTransformer or ModifiedResNet, or one of timm's."
        )
    kind, blocks = type(visual.trunk).__name__, list(getattr(visual.trunk, "blocks", ()))
    pools_by_token = getattr(visual.trunk, "global_pool", "") == "token"
    if pools_by_token and not isinstance(blocks[-1], Block | EvaBlock | EvaBlockPostNorm):
        raise CATSegError(
            f"The image encoder pools by the class token of timm's {kind}, whose last block is a "
            f"{type(blocks[-1]).__name__}: no value path of it is known."
        )
    if kind == "SwinTransformer":
        raise CATSegError(
            "The image encoder is timm's SwinTransformer, whose windows are made for one size of "
            "image; no weights are published for it."
        )


def take_any_size(visual: TimmModel) -> None:
    """Let a ViT of timm take images of any size; its position embedding keeps its native one."""
    trunk = visual.trunk
    if not hasattr(trunk, "dynamic_img_size"):
        return  # a convolutional one does
    trunk.dynamic_img_size = True
    trunk.patch_embed.strict_img_size = False
    trunk.patch_embed.flatten = False
    trunk.patch_embed.output_fmt = Format.NHWC


def encode_tower(
    visual: nn.Module,
    image: Tensor,
    *,
    last_residual: str,
    intermediate_layers: Sequence[int] = (),
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Encode images position by position.

    Args:
        visual: the image encoder, see `check_tower`.
        image: (B, 3, H, W), normalised.
        last_residual: of the last block where a class token pools, "token" or "class"; see
            `encode_dense_tokens`.
        intermediate_layers: layers whose output is wanted too, counted from 1, see `layers_of`.

    Returns:
        (B, D, h, w), and the maps (B, C, h', w') of the layers asked for.

    Raises:
        CATSegError: if a layer is not there.
    """
    count = len(layers_of(visual))
    if unknown := sorted(set(intermediate_layers) - set(range(1, count + 1))):
        raise CATSegError(
            f"Intermediate layers {unknown} of CLIP's image encoder do not exist; expected numbers "
            f"from 1 to {count}."
        )
    if isinstance(visual, ModifiedResNet):
        final, maps = _encode_resnet(visual, image)
    elif getattr(visual.trunk, "global_pool", "") == "token":
        final, maps = _encode_by_values(visual, image, last_residual, intermediate_layers)
    else:
        final, maps = _encode_by_head(visual, image, intermediate_layers)
    return final, tuple(maps[layer] for layer in intermediate_layers)


def _encode_resnet(visual: ModifiedResNet, image: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    x, maps = visual.stem(image), {}
    for i, stage in enumerate((visual.layer1, visual.layer2, visual.layer3, visual.layer4)):
        x = maps[i + 1] = stage(x)
    pool = visual.attnpool
    with without_autocast(x.device):
        values = pool.c_proj(pool.v_proj(rearrange(x.float(), "b c h w -> b h w c")))
    return rearrange(values, "b h w d -> b d h w"), maps


def _encode_by_head(
    visual: TimmModel, image: Tensor, layers: Sequence[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    trunk, wanted = visual.trunk, sorted(set(layers)) or [1]
    _fit_rotation(trunk, image)
    x, maps = trunk.forward_intermediates(image, indices=[layer - 1 for layer in wanted])
    if x.dim() == 3:
        x = _without_prefix(trunk, x, image)
    else:
        x = rearrange(x, "b c h w -> b h w c")
    final = _head_at_each_position(visual, x, tokens=hasattr(trunk, "blocks"))
    return final, dict(zip(wanted, maps, strict=True))


def _encode_by_values(
    visual: TimmModel, image: Tensor, last_residual: str, layers: Sequence[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    trunk = visual.trunk
    last, before = trunk.blocks[-1], len(trunk.blocks) - 1
    wanted = sorted({*layers, before} - {before + 1})
    _fit_rotation(trunk, image)
    pairs = trunk.forward_intermediates(
        image,
        indices=[layer - 1 for layer in wanted],
        stop_early=True,
        intermediates_only=True,
        return_prefix_tokens=True,
    )
    maps = {layer: pair[0] for layer, pair in zip(wanted, pairs, strict=True)}
    positions = rearrange(maps[before], "b c h w -> b (h w) c")
    x = torch.cat([pairs[wanted.index(before)][1], positions], dim=1)  # (B, N, C)
    residual = x[:, :1] if last_residual == "class" else x
    x = trunk.norm(_feed_forward(last, residual + _values(last, x)))
    x = _without_prefix(trunk, x, image)
    if before + 1 in layers:
        maps[before + 1] = rearrange(x, "b h w c -> b c h w")
    return _head_at_each_position(visual, x, tokens=True), maps


def _values(block: Any, x: Tensor) -> Tensor:
    """What a block's attention adds to (B, N, C) if each token sees itself alone."""
    alone = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    if isinstance(block, EvaBlockPostNorm):
        return block.norm1(block.attn(x, attn_mask=alone))
    values = block.attn(block.norm1(x), attn_mask=alone)
    if isinstance(block, EvaBlock):
        return values if block.gamma_1 is None else block.gamma_1 * values
    assert isinstance(block, Block)
    return block.ls1(values)


def _feed_forward(block: Any, x: Tensor) -> Tensor:
    """The second half of a block: the MLP with its norm and residual, (B, N, C) -> the same."""
    if isinstance(block, EvaBlockPostNorm):
        return x + block.norm2(block.mlp(x))
    hidden = block.mlp(block.norm2(x))
    if isinstance(block, EvaBlock):
        return x + (hidden if block.gamma_2 is None else block.gamma_2 * hidden)
    assert isinstance(block, Block)
    return x + block.ls2(hidden)


def _head_at_each_position(visual: TimmModel, x: Tensor, *, tokens: bool) -> Tensor:
    """The pooling head, given each position as the whole picture: (B, h, w, C) -> (B, D, h, w)."""
    trunk, (B, h, _, C) = visual.trunk, x.shape
    with without_autocast(x.device):  # what is compared with text stays float32
        x = x.float().reshape(-1, C)
        if tokens:  # prefix tokens that say the same
            x = x[:, None].expand(-1, 1 + getattr(trunk, "num_prefix_tokens", 0), -1)
        else:
            x = x[:, :, None, None]
        x = visual.head(trunk.forward_head(x))
    return rearrange(x, "(b h w) d -> b d h w", b=B, h=h)


def _without_prefix(trunk: Any, x: Tensor, image: Tensor) -> Tensor:
    """Tokens (B, N, C) to positions (B, h, w, C), without class and register tokens."""
    h, _ = trunk.patch_embed.dynamic_feat_size(image.shape[-2:])
    return rearrange(x[:, trunk.num_prefix_tokens :], "b (h w) c -> b h w c", h=h)


def _fit_rotation(trunk: Any, image: Tensor) -> None:
    """Make rotary position embeddings (EVA02, PE) those of the image's grid."""
    rope = getattr(trunk, "rope", None)
    if rope is not None and hasattr(rope, "update_feat_shape"):
        grid = list(trunk.patch_embed.dynamic_feat_size(image.shape[-2:]))
        if list(rope.feat_shape or grid) != grid:
            rope.update_feat_shape(grid)

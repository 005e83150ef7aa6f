"""CLIP's image encoder with an embedding for every position instead of one for the image.

B images, D embedding width, C channels of the encoder, h x w patches. Token 0 is the class token.

The last block keeps only the value path of its attention, so that a position's feature tells of
that position ("Extract Free Dense Labels from CLIP", arXiv 2112.01071).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.errors import CATSegError
from cat_seg.modeling.autocast import without_autocast
from cat_seg.modeling.chunks import checkpointed
from cat_seg.modeling.clip import blocks
from cat_seg.modeling.clip.stem import ConvStem
from cat_seg.modeling.clip.towers import check_tower, encode_tower, layers_of


class DenseFeatures(NamedTuple):
    """What the encoder says of every position."""

    final: Tensor  # (B, D, h, w), in the space of the text features; not normalised
    intermediates: tuple[Tensor, ...]  # each (B, C, h, w): output tokens of the layers asked for


def encode_dense(
    visual: nn.Module,
    image: Tensor,
    *,
    last_residual: str,
    intermediate_layers: Sequence[int] = (),
    prompts: Tensor | None = None,
    recompute: bool = False,
) -> DenseFeatures:
    """Encode images position by position.

    Args:
        visual: the image encoder; one that is no ViT of open_clip takes no prompts, and timm's
            recompute by `set_grad_checkpointing` instead; see `cat_seg.modeling.clip.towers`.
        image, last_residual, intermediate_layers, prompts, recompute: see `encode_dense_tokens`.
    """
    if not isinstance(visual, VisionTransformer):
        if prompts is not None:
            raise CATSegError(
                "Learned prompt tokens (PROMPT_DEPTH, PROMPT_LENGTH) need open_clip's "
                f"VisionTransformer; this image encoder is a {type(visual).__name__}."
            )
        layers = intermediate_layers
        final, found = encode_tower(
            visual, image, last_residual=last_residual, intermediate_layers=layers
        )
        return DenseFeatures(final, found)
    tokens, intermediates = encode_dense_tokens(
        visual,
        image,
        last_residual=last_residual,
        intermediate_layers=intermediate_layers,
        prompts=prompts,
        recompute=recompute,
    )
    h, _ = patch_grid(visual, image)
    final, *maps = (
        rearrange(t[:, 1:], "b (h w) c -> b c h w", h=h) if t.dim() == 3 else t
        for t in (tokens, *intermediates)
    )
    return DenseFeatures(final, tuple(maps))


def encode_dense_tokens(
    visual: VisionTransformer,
    image: Tensor,
    *,
    last_residual: str,
    intermediate_layers: Sequence[int] = (),
    prompts: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Encode images token by token, the class token first.

    Args:
        visual: the image encoder.
        image: (B, 3, H, W), normalised; H and W are multiples of the patch size.
        last_residual: what a token keeps in the last block besides its own values: "token", itself
            (2023 model), or "class", the class token (2024 model).
        intermediate_layers: layers whose output is wanted too, counted from 1: the stem's stages,
            if there is one, then blocks; not the last.
        prompts: (layers, tokens, C) learned tokens for the first layers: they follow the class
            token through one layer and are dropped behind it.
        recompute: in training, trade time for memory: recompute a block's activations in the
            backward pass.

    Returns:
        Tokens (B, 1 + h * w, D), and those of the layers asked for, each (B, 1 + h * w, C), or of
        a stage of the stem its map (B, ., ., .).

    Raises:
        CATSegError: if the image does not fit the patches, a layer is not there, or `last_residual`
            is unknown.
    """
    if last_residual not in ("token", "class"):
        raise CATSegError(f"LAST_RESIDUAL is {last_residual!r}; expected 'token' or 'class'.")
    *body, last = visual.transformer.resblocks
    count = len(layers_of(visual))
    unknown = sorted(set(intermediate_layers) - set(range(1, count)))
    if unknown:
        raise CATSegError(
            f"Intermediate layers {unknown} of CLIP's image encoder do not exist; "
            f"expected numbers from 1 to {count - 1} (of {count} layers, not the last)."
        )
    x, stem = _embed(visual, image)  # (B, 1 + h * w, C)
    outputs = dict(enumerate(stem, start=1))
    for i, block in enumerate(body):
        prompt = prompts[i] if prompts is not None and i < len(prompts) else None
        x = checkpointed(_block, block, x, prompt, recompute=recompute)
        if (layer := len(stem) + i + 1) in intermediate_layers:
            outputs[layer] = x

    residual = x[:, :1] if last_residual == "class" else x
    values = blocks.value(last.attn, last.ln_1(x))
    x = visual.ln_post(blocks.add_attention_and_mlp(last, residual, values))
    with without_autocast(x.device):  # what is compared with text stays float32
        x = x.to(visual.proj.dtype) @ visual.proj  # (B, 1 + h * w, D)
    return x, tuple(outputs[layer] for layer in intermediate_layers)


def patch_grid(visual: VisionTransformer, image: Tensor) -> tuple[int, int]:
    """Rows and columns of patches of images (..., H, W).

    Raises:
        CATSegError: if the image is not made of whole patches.
    """
    (height, width), (ph, pw) = image.shape[-2:], visual.patch_size
    if height % ph or width % pw:
        raise CATSegError(
            f"An image of {height} x {width} pixels is not made of CLIP's {ph} x {pw} patches; "
            "resize it to multiples of the patch size."
        )
    return height // ph, width // pw


def resize_position_embedding(
    embedding: Tensor, stored: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Resize (1 + h * w, C) position embeddings bicubically; the class position is kept.

    Args:
        embedding: of the class token and of the `stored` grid.
        stored: rows and columns of the embedding.
        grid: rows and columns wanted.
    """
    if stored == grid:
        return embedding
    positions = rearrange(embedding[None, 1:], "1 (h w) c -> 1 c h w", h=stored[0])
    positions = F.interpolate(positions, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([embedding[:1], rearrange(positions, "1 c h w -> (h w) c")])


def check_image_encoder(visual: nn.Module) -> None:
    """Raise a CATSegError that names what is missing if `encode_dense` cannot run this encoder."""
    if not isinstance(visual, VisionTransformer):
        return check_tower(visual)
    if visual.attn_pool is not None or visual.proj is None:
        raise CATSegError(
            "The image encoder pools by attention or has no projection, so that its tokens are "
            "not in the space of the text features. Choose a ViT that ends in one linear "
            "projection."
        )
    blocks.check_blocks(visual.transformer, "image")


def _embed(visual: VisionTransformer, image: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Images (B, 3, H, W) to the first block's input (B, 1 + h * w, C), and the stem's maps."""
    grid = patch_grid(visual, image)
    positions = resize_position_embedding(visual.positional_embedding, visual.grid_size, grid)
    # In the parameters' type: under autocast the residual stream stays float32.
    stem = visual.conv1.maps(image) if isinstance(visual.conv1, ConvStem) else []
    patches = visual.conv1(image, stem) if stem else visual.conv1(image)
    x = rearrange(patches, "b c h w -> b (h w) c").to(positions.dtype)
    x = torch.cat([visual.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
    return visual.ln_pre(x + positions), stem


def _block(block: ResidualAttentionBlock, x: Tensor, prompt: Tensor | None) -> Tensor:
    """One block over (B, L, C), with learned tokens (M, C) behind the class token if given."""
    if prompt is not None:
        x = torch.cat([x[:, :1], prompt.to(x.dtype).expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)
    q, k, v = blocks.query_key_value(block.attn, block.ln_1(x))
    attended = blocks.attend(q, k, v, block.attn.num_heads)
    x = blocks.add_attention_and_mlp(block, x, attended)
    if prompt is not None:
        x = torch.cat([x[:, :1], x[:, 1 + len(prompt) :]], dim=1)
    return x

"""Contrastive learning of a small CLIP from captioned scenes of the synthetic world.

The words of a scene are known, the place of the things that they name is not. A caption is one
phrase in one template ("a photo of a red striped star."). Its score for an image is that of the
mean of the image's dense tokens at first, later a soft maximum over them, as in FILIP
(https://arxiv.org/abs/2111.07783), so that a token must agree with the words by itself. An
image's negatives are the captions that say as much and are not true of it (as in UniCL,
https://arxiv.org/abs/2204.03610): full names, among them every object that differs in one word,
compete with full names, shapes with shapes, colours with colours. Without such groups the model
settles on colours and patterns, which tell most full names apart, and never learns shapes.

Several small scenes are laid side by side on one canvas, each with its own captions: a token that
took its words from a neighbour would be wrong.

Shape letters: B canvases, N scenes (tiles), L tokens of a tile, U captions, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from cat_seg.synthetic.names import BACKGROUNDS, NAMES, OBJECTS
from cat_seg.synthetic.world import draw_scene

PIXEL_MEAN = (122.7709383, 116.7460125, 104.09373615)
PIXEL_STD = (68.5005327, 66.6321579, 70.3231630)
SHARPNESS = 0.5  # of the soft maximum over tokens; infinity would be their maximum


@dataclass(frozen=True)
class Layout:
    """What a canvas holds.

    Attributes:
        canvas: Side of the image that the encoder sees, in pixels.
        tile: Side of one scene, in pixels; divides `canvas`.
        objects: Fewest and most objects of a scene.
        backgrounds: Most backgrounds of a scene.
        radius: Radius of an object, in pixels.
        pool: Whether a scene is the mean of its tokens, as in CLIP. The parts of a thing (an
            outline here, a pattern there) then add up to its words, which is easier to learn than
            that every token knows all of them; the latter is learnt afterwards.
        inside: Least distance of an object's centre from the edges, in radii.
    """

    canvas: int
    tile: int
    objects: tuple[int, int]
    backgrounds: int
    radius: tuple[float, float]
    pool: bool = False
    inside: float = 0.6


def draw_batch(rng: np.random.Generator, layout: Layout, count: int) -> tuple[Tensor, Tensor]:
    """Draw canvases of captioned scenes.

    Returns:
        images (B, 3, H, W) float32 0..255 RGB, and (N, len(NAMES)) bool: what each scene shows,
        scenes in reading order.
    """
    side = layout.canvas // layout.tile
    tiles, shown = [], np.zeros((count * side * side, len(NAMES)), bool)
    for row in shown:
        objects = rng.choice(OBJECTS, int(rng.integers(layout.objects[0], layout.objects[1] + 1)))
        grounds = rng.choice(
            BACKGROUNDS, int(rng.integers(1, layout.backgrounds + 1)), replace=False
        )
        scene = draw_scene(
            rng, layout.tile, objects.tolist(), grounds.tolist(), layout.radius, layout.inside
        )
        tiles.append(scene.image)
        row[[NAMES.index(name) for name in scene.names]] = True
    pictures = rearrange(
        torch.from_numpy(np.stack(tiles)), "(b i j) h w c -> b c (i h) (j w)", i=side, j=side
    )
    return pictures.float(), torch.from_numpy(shown)


def dense_tokens(visual: VisionTransformer, images: Tensor, offset: tuple[int, int]) -> Tensor:
    """Embed every patch of canvases up to the encoder's own size, without resizing positions.

    The same as `cat_seg.modeling.clip.vision.encode_dense` for an image of the encoder's own size;
    smaller canvases take a part of the position grid instead of squeezing all of it.

    Args:
        images: (B, 3, H, W), 0..255.
        offset: row and column of the position grid where the canvas begins.

    Returns:
        (B, h, w, D), not normalised.
    """
    mean, std = images.new_tensor(PIXEL_MEAN), images.new_tensor(PIXEL_STD)
    x = visual.conv1((images - mean[:, None, None]) / std[:, None, None])
    height, width = x.shape[-2:]
    x = rearrange(x, "b c h w -> b (h w) c")
    positions = visual.positional_embedding[1:].unflatten(0, visual.grid_size)
    positions = positions[offset[0] : offset[0] + height, offset[1] : offset[1] + width]
    x = x + positions.flatten(0, 1)
    first = visual.class_embedding + visual.positional_embedding[0]
    x = visual.ln_pre(torch.cat([first.expand(len(x), 1, -1), x], 1))
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    x = x[:, 1:]
    last = visual.transformer.resblocks[-1]
    value = F.linear(
        last.ln_1(x), *(p.chunk(3)[2] for p in (last.attn.in_proj_weight, last.attn.in_proj_bias))
    )
    x = x + last.attn.out_proj(value)
    x = x + last.mlp(last.ln_2(x))
    return (visual.ln_post(x) @ visual.proj).unflatten(1, (height, width))


def caption_scores(
    dense: Tensor, captions: Tensor, scale: Tensor, tile: int, *, pool: bool = False
) -> Tensor:
    """Score every scene against every caption.

    Args:
        dense: (B, h, w, D) tokens.
        captions: (U, D) normalised.
        scale: inverse temperature.
        tile: tokens along the side of a scene.
        pool: score the mean token instead of taking the soft maximum of the tokens' scores.

    Returns:
        (N, U).
    """
    tokens = rearrange(dense, "b (i h) (j w) d -> (b i j) (h w) d", h=tile, w=tile)
    if pool:
        return scale * F.normalize(tokens.mean(1), dim=-1) @ captions.T
    similarity = scale * F.normalize(tokens, dim=-1) @ captions.T  # (N, L, U)
    pooled = torch.logsumexp(SHARPNESS * similarity, 1) - np.log(tile * tile)
    return pooled / SHARPNESS


def contrastive_loss(scores: Tensor, truth: Tensor) -> Tensor:
    """Compute the contrastive loss in both directions, where several captions are true of a scene.

    Each true pair competes with the false pairs of its row (image to text) and of its column (text
    to image), never with other true ones.

    Args:
        scores: (N, U).
        truth: (N, U) bool.
    """
    false = scores.masked_fill(truth, -1e4)  # finite, or a row of true captions has no gradient
    rows = torch.logsumexp(false, 1, keepdim=True).expand_as(scores)[truth]
    columns = torch.logsumexp(false, 0, keepdim=True).expand_as(scores)[truth]
    true = scores[truth]
    return (F.softplus(rows - true) + F.softplus(columns - true)).mean() / 2


def groups_loss(scores: Tensor, truth: Tensor, sizes: Sequence[int]) -> Tensor:
    """Sum `contrastive_loss` over the groups of captions.

    Args:
        scores: (N, U).
        truth: (N, U) bool.
        sizes: of the groups that the captions come in, one after the other.
    """
    parts = zip(scores.split(list(sizes), 1), truth.split(list(sizes), 1), strict=True)
    return torch.stack([contrastive_loss(*part) for part in parts if part[1].any()]).sum()


@torch.no_grad()
def mimetic_init(visual: VisionTransformer) -> None:
    """Start attention where trained encoders have it, after https://arxiv.org/abs/2305.09828.

    Tokens then attend to like ones, by content and by position, and values are subtracted: a small
    encoder sees edges and layouts several times sooner than from random weights.
    """
    for block in visual.transformer.resblocks:
        attention = block.attn
        width, part = attention.embed_dim, attention.head_dim
        queries, keys = [], []
        for _ in range(attention.num_heads):
            left, right = _factors(0.7 * torch.randn(width, width) / width**0.5, 0.7)
            queries.append(left[:, :part].T)
            keys.append(right[:part])
        left, right = _factors(0.4 * torch.randn(width, width) / width**0.5, -0.4)
        attention.in_proj_weight.copy_(torch.cat([*queries, *keys, right]))
        attention.out_proj.weight.copy_(left)


def _factors(noise: Tensor, diagonal: float) -> tuple[Tensor, Tensor]:
    """Split noise + diagonal into two equally large factors, strongest directions first."""
    left, strength, right = torch.linalg.svd(noise + diagonal * torch.eye(len(noise)))
    root = strength.sqrt()
    return left * root, right * root[:, None]

"""CLIP alone as a segmenter: the attention of its last block changed, and nothing trained.

The baseline of CAT-Seg: the same encoder, words and tiles without an aggregator. Weaker than a
trained model, and there for any CLIP at once.

* `maskclip`: the value path ("Extract Free Dense Labels from CLIP", arXiv 2112.01071)
* `sclip`: query-query and key-key attention ("SCLIP", arXiv 2312.01597)
* `clearclip`: query-query attention, without residual and MLP ("ClearCLIP", arXiv 2407.12442)
* `naclip`: key-key attention that prefers neighbours, without residual and MLP ("Pay Attention to
  Your Neighbours", arXiv 2404.08181)
* `proxyclip`: attention by a second encoder's features, likewise ("ProxyCLIP", arXiv 2408.04883)

B images, T classes, P prompt templates, D text width, C channels, h x w positions, N = 1 + h w
tokens, the class token first. Queries, keys and values are (B, heads, N, C / heads).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg import registry
from cat_seg.errors import CATSegError
from cat_seg.model_config import ModelConfig
from cat_seg.modeling.aggregator.aggregator import LEFT_OUT, ClassLogits
from cat_seg.modeling.aggregator.correlation import unit_length
from cat_seg.modeling.autocast import without_autocast
from cat_seg.modeling.chunks import split
from cat_seg.modeling.clip import blocks
from cat_seg.modeling.clip.towers import layers_of
from cat_seg.modeling.clip.vision import encode_dense, encode_dense_tokens, patch_grid
from cat_seg.modeling.sliding_window import resize

VARIANTS = ("maskclip", "sclip", "clearclip", "naclip", "proxyclip")
DEFAULT = "sclip"
PREFIX = "training-free"  # of a model's name
# What `proxyclip` looks at where a config names no other, that of its paper.
SECOND_ENCODER = {"guidance": "timm", "model": "vit_base_patch8_224.dino"}
NOTE = "Training-free: CLIP alone, without CAT-Seg's aggregator; a trained model does better."

_NEIGHBOURS = 5.0  # standard deviation, in positions (NACLIP, section 4)
_SHIFT, _SCALE = 1.2, 3.0  # beta and gamma (ProxyCLIP, section 4)


def parse(source: object) -> tuple[str, str]:
    """Split "training-free:CLIP" or "training-free-VARIANT:CLIP" into variant and CLIP.

    Returns:
        ("", "") for any other name.

    Raises:
        CATSegError: if there is no such variant, or no CLIP is named.
    """
    if not isinstance(source, str) or not source.startswith(PREFIX):
        return "", ""
    head, _, clip = source.partition(":")
    variant = head.removeprefix(PREFIX).removeprefix("-") or DEFAULT
    if not clip:
        raise CATSegError(
            f"{source!r} names no CLIP; expected {PREFIX}:CLIP, as {PREFIX}:ViT-B-16:openai."
        )
    return _known(variant), clip


def without_aggregator(config: ModelConfig, variant: str) -> ModelConfig:
    """Describe the model of the same CLIP without an aggregator.

    Raises:
        CATSegError: if there is no such variant.
    """
    second = _known(variant) == "proxyclip"
    kept = {"adapter", "text"} | ({"guidance"} if second else set())
    parts = [part for part in config.parts if registry.kind_of(part) in kept]
    if second and not (config.swin or config.resnet or registry.names(parts, "guidance")):
        parts.append(SECOND_ENCODER)
    guidance = "backbone" if second else "none"
    return replace(config, training_free=variant, guidance=guidance, parts=tuple(parts))


class Similarity(nn.Module):
    """What stands in the aggregator's place: each position's probability of being a class.

    Attributes:
        grid: rows and columns of the features.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, features: Tensor, text: Tensor, scale: Tensor) -> list[ClassLogits]:
        """Compare features with texts.

        Args:
            features: (B, D, H, W) dense image features.
            text: (T, P, D) text features.
            scale: by which CLIP multiplies similarities, a scalar.

        Returns:
            B of (T, H, W): the logits whose sigmoids are the softmax over the classes.
        """
        means = torch.cat([unit_length(some).mean(1) for some in split(text, 1024)])
        positions = F.normalize(rearrange(features, "B D H W -> B H W D").float(), dim=-1)
        with without_autocast(features.device):  # small differences decide
            similarity = positions @ F.normalize(means, dim=-1).to(features.device).T
            log_p = (scale.float() * similarity).log_softmax(-1)  # (B, H, W, T)
            logits = (log_p - torch.log(-torch.expm1(log_p))).clamp(LEFT_OUT, -LEFT_OUT)
        return [ClassLogits(one, None) for one in rearrange(logits, "B H W T -> B T H W")]

    def kept_bytes(self, T: int, crops: int, batch: int) -> int:
        """Memory that grows with T, see `Aggregator.kept_bytes`."""
        return T * crops * self.grid[0] * self.grid[1] * 4

    def streams(self, T: int, max_classes: int = 0) -> bool:
        """Whether classes can be streamed: no."""
        return False

    def compile_blocks(self) -> None:
        """Compile nothing."""


def encode(
    visual: nn.Module,
    image: Tensor,
    variant: str,
    *,
    prompts: Tensor | None = None,
    second: Tensor | None = None,
) -> Tensor:
    """Encode images position by position, without training.

    Args:
        visual: the image encoder.
        image: (B, 3, H, W), normalised.
        variant: one of `VARIANTS`.
        prompts: see `encode_dense_tokens`.
        second: (B, ., h', w') features of a second encoder, for `proxyclip`.

    Returns:
        (B, D, h, w), in the space of the text features.

    Raises:
        CATSegError: if the encoder has no block whose attention could be changed.
    """
    if _known(variant) == "maskclip":
        return encode_dense(visual, image, last_residual="token", prompts=prompts).final
    if not isinstance(visual, VisionTransformer):
        raise CATSegError(
            f"{variant} changes the attention of a ViT of open_clip; this image encoder is a "
            f"{type(visual).__name__}. Take {PREFIX}-maskclip, which any encoder has."
        )
    before = len(layers_of(visual)) - 1
    _, (x,) = encode_dense_tokens(
        visual, image, last_residual="token", intermediate_layers=[before], prompts=prompts
    )
    block, grid = visual.transformer.resblocks[-1], patch_grid(visual, image)
    heads = block.attn.num_heads
    q, k, v = (
        rearrange(t, "B N (h c) -> B h N c", h=heads)
        for t in blocks.query_key_value(block.attn, block.ln_1(x))
    )
    if variant == "sclip":
        seen = self_attention(q, v) + self_attention(k, v)
    elif variant == "clearclip":
        seen = self_attention(q, v)
    elif variant == "naclip":
        seen = self_attention(k, v, neighbours(grid).to(k))
    else:
        assert second is not None
        seen = torch.cat([v[:, :, :1], by_affinity(second, v[:, :, 1:], grid)], dim=2)
    seen = rearrange(seen, "B h N c -> B N (h c)")
    if variant == "sclip":
        x = blocks.add_attention_and_mlp(block, x, seen)
    else:
        x = F.linear(seen, block.attn.out_proj.weight, block.attn.out_proj.bias)
    x = visual.ln_post(x)
    with without_autocast(x.device):  # what is compared with text stays float32
        x = x.to(visual.proj.dtype) @ visual.proj
    return rearrange(x[:, 1:], "B (h w) D -> B D h w", h=grid[0])


def self_attention(x: Tensor, v: Tensor, prior: Tensor | float = 0.0) -> Tensor:
    """softmax(x x^T / sqrt(c) + prior) v, of (B, heads, N, c)."""
    return torch.softmax(x @ x.mT * x.shape[-1] ** -0.5 + prior, dim=-1) @ v


def neighbours(grid: tuple[int, int]) -> Tensor:
    """A Gaussian of 1 about each position: (N, N), with zeros for the class token."""
    at = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))
    near = torch.exp(-torch.cdist(at, at).square() / (2 * _NEIGHBOURS**2))
    return F.pad(near, (1, 0, 1, 0))


def by_affinity(second: Tensor, v: Tensor, grid: tuple[int, int]) -> Tensor:
    """Attend where a second encoder's features are alike: (B, heads, h w, c) -> the same.

    Args:
        second: (B, ., h', w'), resized to the grid.
        v: values of the positions, without the class token.
        grid: h, w.
    """
    f = F.normalize(rearrange(resize(second, grid), "B C h w -> B (h w) C").float(), dim=-1)
    alike = f @ f.mT
    scores = (alike - _SHIFT * alike.mean((1, 2), keepdim=True)) * _SCALE
    itself = torch.eye(alike.shape[-1], dtype=torch.bool, device=alike.device)
    weights = scores.masked_fill((scores < 0) & ~itself, -torch.inf).softmax(-1)
    return weights.to(v.dtype)[:, None] @ v


def _known(variant: str) -> str:
    if variant not in VARIANTS:
        raise CATSegError(
            f"{variant!r} is no training-free variant; expected one of {', '.join(VARIANTS)}."
        )
    return variant

"""What CAT-Seg needs of an encoder of pictures and words, and open_clip's models as such encoders.

N texts, L tokens of the longest, B images, D embedding width, h x w positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import open_clip
from torch import Tensor, nn

from cat_seg.modeling.clip import text
from cat_seg.modeling.clip.towers import Layer, layers_of
from cat_seg.modeling.clip.vision import DenseFeatures, encode_dense


class ClipSizes(NamedTuple):
    """Sizes of an encoder, read from the model."""

    patch_size: int  # pixels of the image to one position of the dense features
    vision_width: int  # channels of the image encoder
    vision_layers: int
    embed_dim: int  # D, channels of dense features and text features
    grid: tuple[int, int]  # rows and columns of patches at the image size it was built for
    layers: tuple[Layer, ...]  # of the image encoder, shallowest first

    @property
    def guidance_layers(self) -> tuple[int, int]:
        """The layers that guide if none are named, counted from 1: for the maps of 2 H and 4 H.

        Those at one and two thirds of a ViT, as published; of an encoder whose maps shrink, the
        last at half and at a quarter of the stride, whose maps have that resolution.
        """
        strides = [layer.stride for layer in self.layers]
        if strides[0] == strides[-1]:
            return self.vision_layers // 3, 2 * self.vision_layers // 3
        half, quarter = strides[-1] // 2, strides[-1] // 4
        last = {stride: i + 1 for i, stride in enumerate(strides)}
        return last[half], last[quarter]


@runtime_checkable
class Encoder(Protocol):
    """What a part of the kind "encoder" has, which is a module too.

    Attributes:
        visual: the image encoder, a module: of parameters, those below "visual." are its own.
        sizes: see `ClipSizes`.
        normalization: mean and standard deviation of RGB in 0..255 by which its weights see a
            picture; the model's own are CLIP_PIXEL_MEAN and CLIP_PIXEL_STD of the config.
    """

    visual: nn.Module
    normalization: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def sizes(self) -> ClipSizes: ...

    def encode_dense(
        self,
        images: Tensor,
        *,
        last_residual: str,
        intermediate_layers: Sequence[int] = (),
        prompts: Tensor | None = None,
        recompute: bool = False,
    ) -> DenseFeatures:
        """(B, 3, H, W), normalised -> (B, D, h, w), and maps of layers, counted from 1.

        What the other arguments mean is told by `encode_dense_tokens`; they may be ignored.
        """

    def tokenize(self, texts: list[str]) -> Tensor:
        """N texts -> (N, L)."""

    def encode_tokens(
        self,
        tokens: Tensor,
        *,
        batch_tokens: int = 8192,
        recompute: bool = False,
        progress: Any = None,
    ) -> Tensor:
        """(N, L) -> (N, D), with gradients where they are enabled.

        At most `batch_tokens` are encoded at a time; `progress` is a bar to be moved by texts.
        """

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As of a module."""


class OpenClip(open_clip.CLIP):  # type: ignore[misc]  # which is untyped
    """The encoder that a CLIP of open_clip is; made by `build_clip`."""

    normalization: tuple[tuple[float, ...], tuple[float, ...]]

    @property
    def sizes(self) -> ClipSizes:
        """Sizes of the model."""
        return clip_sizes(self)

    def encode_dense(self, images: Tensor, **options: Any) -> DenseFeatures:
        """See `Encoder`."""
        return encode_dense(self.visual, images, **options)

    def tokenize(self, texts: list[str]) -> Tensor:
        """See `Encoder`."""
        return text.tokenize(texts, self)

    def encode_tokens(self, tokens: Tensor, **options: Any) -> Tensor:
        """See `Encoder`."""
        return text.encode_text(self, tokens, **options)


def clip_sizes(clip: open_clip.CLIP) -> ClipSizes:
    """Read the sizes from a model of open_clip."""
    layers = layers_of(clip.visual)
    patch = layers[-1].stride
    height, width = clip.visual.image_size
    projection = clip.text_projection
    if projection is None:  # a text has as many features as the encoder has channels
        embed_dim = clip.token_embedding.embedding_dim
    else:
        embed_dim = getattr(projection, "out_features", None) or projection.shape[1]
    return ClipSizes(
        patch_size=patch,
        vision_width=layers[-1].channels,
        vision_layers=len(layers),
        embed_dim=embed_dim,
        grid=(height // patch, width // patch),
        layers=layers,
    )

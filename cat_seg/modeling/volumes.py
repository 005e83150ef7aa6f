"""Further cost volumes beside CLIP's: other views of the picture, another CLIP.

The features of a volume stand behind CLIP's, along the channels, and so do its texts if it has
some of its own; the aggregator takes them apart again (`Aggregator.parts`).

B images, T classes, P templates, D embedding width, H and W positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from cat_seg.errors import CATSegError
from cat_seg.model_config import ModelConfig
from cat_seg.modeling.clip import (
    Encoder,
    build_clip,
    load_clip_weights,
    set_trainable,
)
from cat_seg.modeling.sliding_window import resize
from cat_seg.registry import register

if TYPE_CHECKING:
    from cat_seg.modeling.predictor import CATSegPredictor


class Volume(Protocol):
    """What a part of the kind "volume" has; a module if it has weights.

    Attributes:
        image_dim: channels of its image features; 0 for as many as CLIP's.
        text_dim: channels of its text features; 0 where CLIP's texts serve.
    """

    image_dim: int
    text_dim: int

    def encode_image(self, predictor: CATSegPredictor, images: Tensor) -> Tensor:
        """Images (B, 3, h, w), normalised for CLIP, of any size, to (B, image_dim, H, W)."""

    def encode_text(self, embed: Callable[[Encoder], Tensor]) -> Tensor:
        """Texts as (T, P, text_dim), where `embed` embeds them by a CLIP."""


VIEWS = ("flip", "90", "180", "270")


@register("volume", "view")
class View(nn.Module):
    """The volume of the picture mirrored, or turned by so many degrees, and turned back."""

    image_dim = text_dim = 0

    def __init__(self, config: ModelConfig, *, turn: str) -> None:
        """Take one of `VIEWS`.

        Raises:
            CATSegError: if it is another.
        """
        super().__init__()
        if turn not in VIEWS:
            raise CATSegError(f"turn is {turn!r}; expected one of {', '.join(VIEWS)}.")
        self.turn, self.grid = turn, config.grid

    def encode_image(self, predictor: CATSegPredictor, images: Tensor) -> Tensor:
        quarters = 0 if self.turn == "flip" else int(self.turn) // 90
        turned = images.flip(-1) if self.turn == "flip" else images.rot90(quarters, (-2, -1))
        patch = predictor.clip_model.sizes.patch_size
        H, W = self.grid if quarters % 2 == 0 else self.grid[::-1]
        features = predictor.encode_image(resize(turned, (H * patch, W * patch))).final
        return features.flip(-1) if self.turn == "flip" else features.rot90(-quarters, (-2, -1))

    def encode_text(self, embed: Callable[[Encoder], Tensor]) -> Tensor:
        raise NotImplementedError  # CLIP's serve


@register("volume", "clip")
class SecondClip(nn.Module):
    """The volume of another CLIP, with texts of its own. It is not trained unless asked."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        clip: str | dict[str, Any],
        weights: str = "",
        last_residual: str = "token",
        finetune: str = "freeze",
    ) -> None:
        """Build it with random weights.

        Args:
            config: of the model.
            clip: see `build_clip`.
            weights: see `load_clip_weights`; "" for the published ones of that name.
            last_residual: see `encode_dense`.
            finetune: which parameters train, see `set_trainable`.
        """
        super().__init__()
        self.clip_model = build_clip(clip)
        self.clip, self.weights, self.last_residual = clip, weights, last_residual
        self.grid = config.grid
        set_trainable(self.clip_model, finetune, text=False)
        self.image_dim = self.text_dim = self.clip_model.sizes.embed_dim
        mean, std = self.clip_model.normalization
        # From images normalised for the first CLIP to the second's normalisation.
        scale = _column(config.clip_pixel_std) / _column(std)
        shift = (_column(config.clip_pixel_mean) - _column(mean)) / _column(std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def encode_image(self, predictor: CATSegPredictor, images: Tensor) -> Tensor:
        patch = self.clip_model.sizes.patch_size
        images = resize(images, (self.grid[0] * patch, self.grid[1] * patch))
        return self.clip_model.encode_dense(
            images * self.scale + self.shift,
            last_residual=self.last_residual,
        ).final

    def encode_text(self, embed: Callable[[Encoder], Tensor]) -> Tensor:
        return embed(self.clip_model)

    def load_initial_weights(self) -> None:
        """Load the weights that it was trained with, as a training begins."""
        source = self.weights or self.clip
        if isinstance(source, str):
            load_clip_weights(self.clip_model, source)


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)

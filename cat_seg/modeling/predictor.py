"""CLIP and the aggregator: from images and text features to a logit per class and position.

B images, T classes, P prompt templates, D text width, H and W positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from cat_seg import registry
from cat_seg.errors import CATSegError
from cat_seg.model_config import ModelConfig
from cat_seg.modeling import training_free
from cat_seg.modeling.aggregator import Aggregator, ClassLogits, StreamedLogits
from cat_seg.modeling.aggregator.correlation import correlate
from cat_seg.modeling.autocast import without_autocast
from cat_seg.modeling.clip import (
    DenseFeatures,
    Encoder,
    OpenClip,
    build_clip,
    split_in_proj,
)
from cat_seg.modeling.prompt_templates import get_templates
from cat_seg.modeling.text_embedding import embed_text
from cat_seg.modeling.volumes import Volume

GUIDANCE = ("backbone", "clip", "both", "none")  # of the image


class CATSegPredictor(nn.Module):
    """CLIP (`clip_model`), the aggregator (`transformer`), and the texts' templates.

    It holds no vocabulary: text features are computed from names and given to `forward`.
    """

    def __init__(
        self,
        config: ModelConfig,
        guidance_channels: Sequence[int] = (),
        *,
        class_chunk: int = 0,
        half_volume: bool = False,
        text_batch: int = 4096,
        recompute: bool = False,
        clip: OpenClip | None = None,
    ) -> None:
        """
        Args:
            config: the architecture.
            guidance_channels: of the backbone's maps, deepest first; () without a backbone.
            class_chunk: classes that the aggregator takes at once; 0 chooses. Changes no result.
            half_volume: keep the volume in half precision between the layers, in inference.
            text_batch: tokens of a batch of texts.
            recompute: trade time for memory in training.
            clip: another predictor's of the same architecture, to be shared; None to build one.
        """
        super().__init__()
        self.config = config
        encoder: OpenClip | None = clip or registry.make(config, "encoder")  # or another `Encoder`
        self.clip_model = build_clip(config.clip) if encoder is None else encoder
        if recompute and isinstance(self.clip_model.visual, TimmModel):
            self.clip_model.visual.set_grad_checkpointing()
        if config.split_qkv and encoder is None:
            split_in_proj(self.clip_model)
        for adapt in registry.make_all(config, "adapter") if clip is None else []:
            adapt(self.clip_model)
        sizes = self.clip_model.sizes
        self.embed_dim = sizes.embed_dim
        self.guidance_layers: tuple[int, ...] = ()
        if config.guidance not in GUIDANCE:
            raise CATSegError(
                f"guidance is {config.guidance!r}; expected one of {', '.join(GUIDANCE)}."
            )
        if config.guidance in ("clip", "both"):
            self.guidance_layers = config.guidance_layers or sizes.guidance_layers
            of_clip = (sizes.embed_dim, *config.upsample_dims)
            guidance_channels = [
                own + other
                for own, other in zip(of_clip, guidance_channels or (0, 0, 0), strict=True)
            ]
        self.guidance_channels = tuple(guidance_channels)
        self.templates = get_templates(config.templates)
        self.volumes = nn.ModuleList(registry.make_all(config, "volume"))
        volumes = self._volumes()
        widths = [(v.image_dim or self.embed_dim, v.text_dim) for v in volumes]
        self.text_dim = self.embed_dim + sum(width for _, width in widths)
        if registry.names(config.parts, "guidance") and config.guidance not in ("backbone", "both"):
            raise CATSegError(
                f"parts names a guidance, but guidance is {config.guidance!r}; set it to "
                "'backbone' or 'both'."
            )

        def make_layer() -> nn.Module:
            layer = registry.make(config, "layer")
            assert isinstance(layer, nn.Module)
            return layer

        self.transformer: Aggregator | training_free.Similarity
        if config.training_free:
            self.transformer = training_free.Similarity(_pair(config.grid))
        else:
            self.transformer = Aggregator(
                text_dim=sizes.embed_dim,
                prompt_dim=len(self.templates),
                grid=_pair(config.grid),
                hidden_dim=config.hidden_dim,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                window=config.window,
                attention_type=config.attention_type,
                pooling=_pair(config.pooling),
                test_pooling=_pair(config.test_pooling) if config.test_pooling else None,
                text_guidance_dim=config.text_guidance_dim,
                guidance_in_dims=guidance_channels,
                guidance_dim=config.guidance_dim,
                decoder_dims=config.decoder_dims,
                decoder_guidance_dims=config.decoder_guidance_dims,
                class_padding=config.class_padding,
                max_classes=config.max_classes,
                class_chunk=class_chunk,
                half_volume=half_volume,
                recompute=recompute,
                volumes=widths,
                cost=registry.make(config, "cost") or correlate,
                layer=make_layer if registry.names(config.parts, "layer") else None,
                decoder=registry.make(config, "decoder"),
            )
        self.text = registry.make(config, "text")
        self.text_batch = text_batch
        self.recompute = recompute
        depth, length = config.prompt_tokens
        self.prompt_tokens = None
        if depth and length:
            self.prompt_tokens = nn.Parameter(0.02 * torch.randn(depth, length, sizes.vision_width))

    def encode_image(self, images: Tensor, second: Tensor | None = None) -> DenseFeatures:
        """Encode images position by position.

        Args:
            images: (B, 3, h, w), normalised for CLIP.
            second: of a training-free model, the deepest map of its backbone, if it has one.

        Returns:
            dense features and the guidance layers' tokens.
        """
        if self.config.training_free:
            final = training_free.encode(
                self.clip_model.visual,
                images,
                self.config.training_free,
                prompts=self.prompt_tokens,
                second=second,
            )
            return DenseFeatures(final, ())
        return self.clip_model.encode_dense(
            images,
            last_residual=self.config.last_residual,
            intermediate_layers=self.guidance_layers,
            prompts=self.prompt_tokens,
            recompute=self.recompute,
        )

    def beside(self, features: Tensor, images: Tensor) -> Tensor:
        """Dense CLIP features, and behind them those of further volumes.

        Args:
            features: (B, D, H, W)
            images: (B, 3, h, w), normalised for CLIP, of any size.
        """
        others = [volume.encode_image(self, images) for volume in self._volumes()]
        return torch.cat([features, *others], dim=1) if others else features

    def _volumes(self) -> list[Volume]:
        return list(self.volumes)  # type: ignore[arg-type]

    def encode_text(
        self, class_names: Sequence[str], cache_dir: str | Path | None = None
    ) -> Tensor:
        """Features of class names, with gradients where they are enabled.

        Args:
            class_names: T names; the synonyms of one separated by ", ".
            cache_dir: folder in which they are looked for and kept, without gradients then; None
                for none.

        Returns:
            (T, P, D), of unit length, and behind them those of volumes with texts of their own.
        """

        def embed(clip: Encoder) -> Tensor:
            return embed_text(
                clip,
                class_names,
                self.templates,
                synonyms=self.config.synonyms,
                batch_size=self.text_batch,
                cache_dir=cache_dir,
                recompute=self.recompute,
            )

        if self.text is not None:
            features = self.text(self.clip_model, class_names, self.templates)
        else:
            features = embed(self.clip_model)
        others = [v.encode_text(embed) for v in self._volumes() if v.text_dim]
        return torch.cat([features, *others], dim=-1) if others else features

    def text_state(self) -> list[object]:
        """What changes whenever the text encoder's weights, device or type do."""
        every = list(self.clip_model.named_parameters())
        every += self.volumes.named_parameters()
        if isinstance(self.text, nn.Module):
            every += self.text.named_parameters()
        weights = [w for name, w in every if "visual." not in name and "logit_" not in name]
        # An optimiser step or a loaded checkpoint changes a parameter's version.
        return [(id(w), w._version, w.device, w.dtype) for w in weights]

    def text_features(
        self, class_names: Sequence[str], cache_dir: str | Path | None = None
    ) -> Tensor:
        """`encode_text` in float32 and without gradients."""
        device = next(self.clip_model.parameters()).device
        with torch.no_grad(), without_autocast(device):
            return self.encode_text(class_names, cache_dir)

    def forward(
        self,
        features: Tensor,
        guidance: Sequence[Tensor],
        text: Tensor,
        batch: int = 0,
        max_classes: int = 0,
        representatives: int = 0,
        *,
        stream: bool = False,
        inside: list[Tensor] | None = None,
    ) -> list[ClassLogits] | list[StreamedLogits]:
        """Segment images into T classes.

        Args:
            features: (B, D, H, W) dense CLIP features, see `beside`.
            guidance: maps of (B, ., H, W), (B, ., 2 H, 2 W), (B, ., 4 H, 4 W); or none.
            text: (T, P, D), see `encode_text`.
            batch: images aggregated at a time; 0 for all.
            max_classes, representatives: see `Aggregator.forward`.
            stream, inside: see `Aggregator.forward`.

        Returns:
            the logits of each image.
        """
        if isinstance(self.transformer, training_free.Similarity):
            return self.transformer(features, text, self.clip_model.logit_scale.exp())
        return self.transformer(
            features,
            text,
            guidance,
            batch,
            max_classes,
            representatives,
            stream=stream,
            inside=inside,
        )


class SegmentationHead(nn.Module):
    """What the published models call `sem_seg_head`: it holds the predictor."""

    def __init__(self, predictor: CATSegPredictor) -> None:
        super().__init__()
        self.predictor = predictor


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    return sizes[0], sizes[1]

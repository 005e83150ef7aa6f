"""Cost aggregation (paper, section 3): cost volume, embedding, layers, decoder.

B images, T classes, P prompt templates, D text width, C channels, H and W positions.

The volume has one layout from the first convolution to the head, (B, T, H, W, C): linear layers
and attention see it as rows, convolutions as a channels-last map. All steps but class aggregation
see each class alone and take the classes in chunks. Under autocast the cost volume, the volume
between the layers and the last convolution stay float32 (the volume unless TEST.HALF_VOLUME).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.errors import CATSegError
from cat_seg.modeling.aggregator.class_aggregation import ClassAggregation
from cat_seg.modeling.aggregator.correlation import (
    Selection,
    cluster,
    correlate,
    most_similar_classes,
    represent,
    unit_length,
)
from cat_seg.modeling.aggregator.decoder import DecoderBlock
from cat_seg.modeling.aggregator.spatial_aggregation import SpatialAggregation
from cat_seg.modeling.chunks import checkpointed, chunk_length, gather_chunks, map_chunks, split
from cat_seg.modeling.layers import Linear, may_overwrite

# The logit of a class that was left out of the aggregation.
LEFT_OUT = -100.0


class ClassLogits(NamedTuple):
    """Logits of one image's aggregated classes."""

    values: Tensor  # (T', 4 H, 4 W)
    classes: Tensor | None  # (T',) their indices, ascending; None when these are all

    @property
    def map_size(self) -> tuple[int, int]:
        """4 H, 4 W."""
        return self.values.shape[-2], self.values.shape[-1]

    def of(self, classes: Tensor) -> Tensor:
        """The maps of some classes, (len(classes), 4 H, 4 W); `LEFT_OUT` where left out."""
        if self.classes is None:
            return self.values[classes]
        at = torch.searchsorted(self.classes, classes).clamp(max=len(self.classes) - 1)
        here = self.classes[at] == classes
        return torch.where(here[:, None, None], self.values[at], LEFT_OUT)


class StreamedLogits:
    """Logits of one image's classes, computed whenever they are asked for.

    Classes meet in the two sums of linear class attention alone. These are added up first, layer
    by layer, in a pass over all classes each; then any class can be computed by itself. No more is
    kept, so memory does not grow with T; classes are computed once a layer and once more, and those
    that may win again.
    """

    classes = None  # these are all

    def __init__(
        self,
        aggregator: Aggregator,
        features: Tensor,
        text: Tensor,
        words: Tensor | None,
        guidance: Sequence[Tensor],
    ) -> None:
        """
        Args:
            aggregator: in inference.
            features: (1, H, W, D), of unit length.
            text: (T, P, D), which may be mapped into memory.
            words: (T, .) projected text.
            guidance: of this image, see `Aggregator.forward`.
        """
        self.aggregator = aggregator
        self.features = features
        self.text = text
        self.words = words
        self.guidance = guidance
        device = features.device
        self.length = aggregator.chunk(1, device)
        # As now, also where classes are asked for later.
        enabled, dtype = torch.is_autocast_enabled(device.type), None
        if enabled:
            dtype = torch.get_autocast_dtype(device.type)
        self.autocast = partial(torch.autocast, device.type, dtype, enabled=enabled)
        appearance = aggregator.project_appearance(guidance)
        self.guided = [layer.swin_block.guide(appearance) for layer in aggregator.every_layer()]
        self.sums: list[tuple[Tensor, Tensor]] = []
        for layer in aggregator.every_layer():
            total = layer.attention.padding_sums(len(text))
            for classes in torch.arange(len(text), device=device).split(self.length):
                x, some = self._before_attention(classes)
                key_value, key_sum = layer.attention.sums(x, some)
                if total is None:
                    total = key_value, key_sum
                elif total[0].shape == key_value.shape:
                    total[0].add_(key_value)
                    total[1].add_(key_sum)
                else:  # of the padding, the same at every position
                    total = key_value.add_(total[0]), key_sum.add_(total[1])
            assert total is not None
            self.sums.append(total)

    @property
    def map_size(self) -> tuple[int, int]:
        """4 H, 4 W."""
        return 4 * self.features.shape[1], 4 * self.features.shape[2]

    def of(self, classes: Tensor) -> Tensor:
        """The maps of some classes, (len(classes), 4 H, 4 W)."""
        maps = torch.empty(len(classes), *self.map_size, device=self.features.device)
        with torch.no_grad(), self.autocast():
            for i in range(0, len(classes), self.length):
                some = slice(i, i + self.length)
                x, words = self._before_attention(classes[some])
                if self.sums:
                    last = self.aggregator.every_layer()[-1]
                    x = last.attention.part(x, words, self.sums[-1])
                maps[some] = self.aggregator.decode(
                    x, self.guidance[1:], self.length, overwrite=False
                )[0]
        return maps

    def _before_attention(self, classes: Tensor) -> tuple[Tensor, Tensor | None]:
        """The volume of some classes, as far as the sums are known, and their projected text."""
        words = None if self.words is None else self.words[classes]
        x = self.aggregator.embed(self.features, self.text[classes.to(self.text.device)])
        last = min(len(self.sums), len(self.guided) - 1)
        for depth, layer in enumerate(self.aggregator.every_layer()[: last + 1]):
            x = layer.swin_block(x, guided=self.guided[depth])
            if depth < last:
                x = layer.attention.part(x, words, self.sums[depth])
        return x, words


class AggregatorLayer(nn.Module):
    """Spatial aggregation, then class aggregation."""

    def __init__(self, swin_block: SpatialAggregation, attention: ClassAggregation) -> None:
        super().__init__()
        self.swin_block = swin_block
        self.attention = attention

    def forward(
        self,
        x: Tensor,
        appearance: Tensor | None,
        words: Tensor | None,
        *,
        length: int = 1 << 30,
        recompute: bool = False,
        weights: Tensor | None = None,
    ) -> Tensor:
        """(B, T, H, W, C) -> the same shape, overwritten where no gradient is needed.

        Args:
            x: the volume, owned by the caller.
            appearance: (B, H, W, .) guidance by images, or None.
            words: (T, .) guidance by texts, or None.
            length: classes in one chunk of what sees each class alone.
            recompute: trade time for memory in training.
            weights: (T,) how many classes each one stands for; None for itself alone.
        """
        spatial = partial(self.swin_block, guided=self.swin_block.guide(appearance))
        x = map_chunks(spatial, x, dim=1, length=length, recompute=recompute)
        return self.attention(x, words, recompute=recompute, weights=weights)


class Aggregator(nn.Module):
    """The trained part of CAT-Seg on top of CLIP (`sem_seg_head.predictor.transformer`)."""

    def __init__(
        self,
        *,
        text_dim: int,
        prompt_dim: int,
        grid: tuple[int, int] = (24, 24),
        hidden_dim: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        window: int = 12,
        attention_type: str = "linear",
        pooling: tuple[int, int] = (1, 1),
        test_pooling: tuple[int, int] | None = None,
        text_guidance_dim: int = 128,
        guidance_in_dims: Sequence[int] = (512, 256, 128),
        guidance_dim: int = 128,
        decoder_dims: Sequence[int] = (64, 32),
        decoder_guidance_dims: Sequence[int] = (32, 16),
        class_padding: int = 0,
        max_classes: int = 0,
        class_chunk: int = 0,
        half_volume: bool = False,
        recompute: bool = False,
        volumes: Sequence[tuple[int, int]] = (),
        cost: Callable[[Tensor, Tensor], Tensor] = correlate,
        layer: Callable[[], nn.Module] | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        """
        Args:
            text_dim: D.
            prompt_dim: P.
            grid: H, W.
            hidden_dim: C.
            num_layers: pairs of spatial and class aggregation.
            num_heads: of every attention.
            window: of spatial aggregation, in positions.
            attention_type: of class aggregation, "linear" or "full".
            pooling: before class aggregation.
            test_pooling: the same in evaluation mode; None for `pooling`.
            text_guidance_dim: of the projected text; 0 for no text guidance.
            guidance_in_dims: channels of the guidance maps, deepest first: one for the layers,
                one for each decoder block; () for no guidance by images.
            guidance_dim: of the projected deepest map; 0 for no guidance in the layers.
            decoder_dims: channels of each decoder block's result, multiples of 16.
            decoder_guidance_dims: channels of each block's projected guidance; 0 for none.
            class_padding: length to which class sequences are filled up (2024: 256); 0 for none.
            max_classes: at most so many classes of an image are aggregated, the most similar
                (2024: 256); 0 for all.
            class_chunk: classes in one chunk; 0 chooses for the device. Changes no result.
            half_volume: keep the volume in half precision between the layers, in inference.
            recompute: trade time for memory in training.
            volumes: of each further cost volume the channels of its image features and of its text
                features, which follow the first volume's D; 0 of text for the first's text.
            cost: what makes a volume of image and text features, see `correlate`.
            layer: makes a layer, to be called as an `AggregatorLayer` is; None for that.
            decoder: in place of the two blocks and the head: (B, T, H, W, C) and the projected
                guidance of 2 H x 2 W and of 4 H x 4 W, if there is any, -> (B, T, 4 H, 4 W). It
                sees any chunk of the classes.

        Raises:
            CATSegError: for sizes that do not fit together.
        """
        super().__init__()
        if hidden_dim % num_heads:
            raise CATSegError(
                f"HIDDEN_DIMS {hidden_dim} is not a multiple of NUM_HEADS {num_heads}."
            )
        if not guidance_in_dims:
            guidance_in_dims, guidance_dim, decoder_guidance_dims = (0, 0, 0), 0, (0, 0)
        if len(guidance_in_dims) != 1 + len(decoder_dims) or len(decoder_dims) != 2:
            raise CATSegError(
                "Expected two decoder blocks (DECODER_DIMS) and three guidance maps, one for the "
                f"layers and one a block; got {len(decoder_dims)} and {len(guidance_in_dims)}."
            )
        self.grid = grid
        self.hidden_dim = hidden_dim
        self.max_classes = max_classes
        self.class_chunk = class_chunk
        self.half_volume = half_volume
        self.recompute = recompute
        self.text_dim = text_dim
        self.parts = _parts(text_dim, volumes)
        self.cost = cost
        # Channels of the widest activation of one class at one position of the coarse map.
        self.widest = max(4 * hidden_dim, 16 * decoder_dims[-1], 4 * decoder_dims[0])

        channels = prompt_dim * len(self.parts)
        self.conv1 = nn.Conv2d(channels, hidden_dim, kernel_size=7, padding=3)

        def published_layer() -> AggregatorLayer:
            return AggregatorLayer(
                SpatialAggregation(
                    dim=hidden_dim,
                    guidance_dim=guidance_dim,
                    grid=grid,
                    num_heads=num_heads,
                    window=window,
                ),
                ClassAggregation(
                    dim=hidden_dim,
                    guidance_dim=text_guidance_dim,
                    num_heads=num_heads,
                    attention_type=attention_type,
                    pooling=pooling,
                    test_pooling=test_pooling,
                    padding=class_padding,
                ),
            )

        make_layer = layer or published_layer
        self.layers = nn.ModuleList(make_layer() for _ in range(num_layers))
        self.guidance_projection = _projection(guidance_in_dims[0], guidance_dim)
        self.text_guidance_projection = (
            nn.Sequential(Linear(text_dim, text_guidance_dim), nn.ReLU())
            if text_guidance_dim
            else None
        )
        projections = [
            _projection(i, o)
            for i, o in zip(guidance_in_dims[1:], decoder_guidance_dims, strict=True)
        ]
        self.decoder_guidance_projection = (
            None if None in projections else nn.ModuleList(p for p in projections if p)
        )
        self.decoder = decoder
        if decoder is not None:
            self.widest = max(self.widest, getattr(decoder, "widest", 0))
            return
        guides = decoder_guidance_dims if self.decoder_guidance_projection else (0, 0)
        self.decoder1 = DecoderBlock(
            in_dim=hidden_dim, out_dim=decoder_dims[0], guidance_dim=guides[0]
        )
        self.decoder2 = DecoderBlock(
            in_dim=decoder_dims[0], out_dim=decoder_dims[1], guidance_dim=guides[1]
        )
        self.head = nn.Conv2d(decoder_dims[1], 1, kernel_size=3, padding=1)

    def compile_blocks(self) -> None:
        """Compile the blocks that see every chunk (`nn.Module.compile`; copies are not)."""
        for layer in self.every_layer():
            layer.swin_block.compile()
        for decoder in [self.decoder1, self.decoder2] if self.decoder is None else [self.decoder]:
            decoder.compile()

    def kept_bytes(self, T: int, crops: int, batch: int) -> int:
        """Memory that grows with T: the volume of a batch of crops and the logits of all crops."""
        positions = self.grid[0] * self.grid[1]
        volume = positions * self.hidden_dim * (2 if self.half_volume else 4)
        return T * ((batch or crops) * volume + crops * 16 * positions * 4)

    def streams(self, T: int, max_classes: int = 0) -> bool:
        """Whether `forward` can stream T classes: class attention is linear, and not pooled."""
        selects = 0 < (max_classes or self.max_classes) < T
        published = all(type(layer) is AggregatorLayer for layer in self.layers)
        linear = all(layer.attention.streams() for layer in self.every_layer())
        return not selects and published and linear

    def forward(
        self,
        features: Tensor,
        text: Tensor,
        guidance: Sequence[Tensor],
        batch: int = 0,
        max_classes: int = 0,
        representatives: int = 0,
        *,
        stream: bool = False,
        inside: list[Tensor] | None = None,
    ) -> list[ClassLogits] | list[StreamedLogits]:
        """Aggregate the cost volume of each image.

        Args:
            features: (B, D, H, W) dense image features, and behind them those of more volumes.
            text: (T, P, D) text features, likewise.
            guidance: feature maps, deepest first: (B, ., H, W), (B, ., 2 H, 2 W), (B, ., 4 H, 4 W);
                none without guidance.
            batch: images whose volumes exist at a time; 0 for all of them.
            max_classes: at most so many classes of an image get maps; 0 for the model's own rule.
            representatives: classes that stand for the rest in class attention; 0 for none.
            stream: keep no volume and no logits, see `StreamedLogits`; where `streams` allows.
            inside: in training, the volume after each layer is appended to it, for losses.

        Returns:
            B of `ClassLogits`, of (T, 4 H, 4 W), or (max_classes, 4 H, 4 W) if that is less.

        Raises:
            CATSegError: if the guidance has another size than the grid.
        """
        guide = guidance[0] if guidance else features
        if features.shape[-2:] != self.grid or guide.shape[-2:] != self.grid:
            raise CATSegError(
                f"Image features of {tuple(features.shape[-2:])} and guidance of "
                f"{tuple(guide.shape[-2:])} positions; FEATURE_RESOLUTION asks for "
                f"{self.grid} of both."
            )
        features = self.unit_features(features)
        B = len(features)
        count = max_classes or self.max_classes
        select = 0 < count < len(text)
        batch = 1 if select else batch or B
        words = self.project_text(text)
        means = clusters = None
        if select and representatives:
            means = self._mean_text(text)
            clusters = cluster(means, min(representatives, len(text) - count))
        if stream:
            return [
                StreamedLogits(
                    self, features[i : i + 1], text, words, [g[i : i + 1] for g in guidance]
                )
                for i in range(B)
            ]
        logits: list[ClassLogits] = []
        volume = None
        for start in range(0, B, batch):
            some, chosen, kept = slice(start, start + batch), None, None
            if select:
                with torch.no_grad():
                    first = features[start, ..., : self.text_dim]
                    if clusters is not None and means is not None:
                        kept = represent(first, means, count, clusters)
                    else:
                        length = self.chunk(1, features.device)
                        one = text[..., : self.text_dim]
                        found = most_similar_classes(first, one, count, length)
                        kept = Selection(found, found[:0], None)
                chosen = torch.cat([kept.classes, kept.others])
            memory = volume
            if volume is not None and chosen is not None:  # of representatives there may be more
                memory = volume[:, : len(chosen)] if len(chosen) <= volume.shape[1] else None
            volume, maps = self.aggregate(
                features[some],
                text if chosen is None else text[chosen],
                words if words is None or chosen is None else words[chosen],
                [g[some] for g in guidance],
                memory,
                overwrite=start + batch >= B,
                kept=kept,
                inside=inside,
            )
            classes = None if kept is None else kept.classes
            logits += [ClassLogits(m, classes) for m in maps]
        return logits

    def aggregate(
        self,
        features: Tensor,
        text: Tensor,
        words: Tensor | None,
        guidance: Sequence[Tensor],
        volume: Tensor | None,
        *,
        overwrite: bool,
        kept: Selection | None = None,
        inside: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The logits of B images.

        Args:
            features: (B, H, W, D), of unit length.
            text: (T, P, D)
            words: (T, .) projected text.
            guidance: see `forward`.
            volume: memory of the images before, (B or more, T, H, W, C), used again.
            overwrite: without gradients, the logits may lie in the volume's memory: no images
                follow.
            kept: what the classes stand for, and how many of them, the first, get maps; None for
                themselves, and all.
            inside: see `forward`.

        Returns:
            The volume, its contents lost, and (B, T, 4 H, 4 W).
        """
        length = self.chunk(features.shape[0], features.device)
        appearance = self.project_appearance(guidance)
        chunks = (self.embed(features, t) for t in split(text, length))
        memory = None if volume is None else volume[: features.shape[0]]
        x = gather_chunks(chunks, text.shape[0], memory)
        weights = kept.weights if kept is not None else None
        for layer in self.layers:
            x = layer(
                x, appearance, words, length=length, recompute=self.recompute, weights=weights
            )
            if inside is not None:
                inside.append(x)
        shown = x if kept is None else x[:, : len(kept.classes)]
        return x, self.decode(shown, guidance[1:], length, overwrite=overwrite)

    def every_layer(self) -> list[AggregatorLayer]:
        """The published layers, in their order; none of another kind."""
        return [layer for layer in self.layers if isinstance(layer, AggregatorLayer)]

    def project_appearance(self, guidance: Sequence[Tensor]) -> Tensor | None:
        """The layers' guidance by images, see `forward`: (B, H, W, .)."""
        if self.guidance_projection is None:
            return None
        appearance = rearrange(self.guidance_projection(guidance[0]), "B C H W -> B H W C")
        return appearance.contiguous()

    def project_text(self, text: Tensor) -> Tensor | None:
        """Text guidance of a vocabulary: (T, P, D) -> (T, .)."""
        if self.text_guidance_projection is None:
            return None
        return self.text_guidance_projection(self._mean_text(text))

    def _mean_text(self, text: Tensor) -> Tensor:
        """The mean of each class's templates, of unit length: (T, P, D) -> (T, D)."""
        text = text[..., : self.text_dim]
        means = [unit_length(t).mean(dim=1) for t in split(text, self.chunk(1, text.device))]
        return F.normalize(torch.cat(means), dim=-1)

    def unit_features(self, features: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, H, W, D), those of each volume of unit length."""
        features = rearrange(features, "B D H W -> B H W D").float()
        return _joined([F.normalize(features[..., some], dim=-1) for some, _ in self.parts])

    def embed(self, features: Tensor, text: Tensor) -> Tensor:
        """Correlation and first convolution: (B, H, W, D), (T, P, D) -> (B, T, H, W, C)."""
        cost = _joined(
            [self.cost(features[..., f], unit_length(text[..., t])) for f, t in self.parts]
        )  # (B, T, H, W, P)
        # Permuted, and not rearranged: a map of one channel is channels-last by its strides alone.
        cost = rearrange(cost, "B T H W P -> (B T) H W P").permute(0, 3, 1, 2)
        x = self.conv1(cost)
        half = self.half_volume and may_overwrite()
        x = x.to(torch.float16 if half else torch.float32)
        return rearrange(x, "(B T) C H W -> B T H W C", B=features.shape[0])

    def decode(
        self, x: Tensor, guidance: Sequence[Tensor], length: int, *, overwrite: bool
    ) -> Tensor:
        """(B, T, H, W, C) -> (B, T, 4 H, 4 W), in the memory of x if that may be overwritten."""
        B, T, H, W, C = x.shape
        maps: list[Tensor | None] = [None, None]
        if self.decoder_guidance_projection is not None:
            maps = [p(g) for p, g in zip(self.decoder_guidance_projection, guidance, strict=True)]
        chunk = self._decoder_of(maps, (H, W))
        chunks = split(x, length, dim=1)
        if not may_overwrite():
            recompute = self.recompute
            return torch.cat([checkpointed(chunk, p, recompute=recompute) for p in chunks], dim=1)
        if overwrite and C * x.element_size() >= 16 * 4:
            # A class has fewer logits than it had channels: they fit where it, or one before, was.
            logits = x.view(torch.float32).view(B, -1)[:, : T * 16 * H * W]
        else:
            logits = torch.empty(B, T * 16 * H * W, device=x.device)
        logits = logits.view(B, T, 4 * H, 4 * W)
        for start, p in zip(range(0, T, length), chunks, strict=True):
            logits[:, start : start + length] = chunk(p)
        return logits

    def _decoder_of(
        self, maps: Sequence[Tensor | None], grid: tuple[int, int]
    ) -> Callable[[Tensor], Tensor]:
        """What decodes a chunk of classes, by projected guidance: -> (B, T, 4 H, 4 W)."""
        if self.decoder is not None:
            return partial(self.decoder, guidance=maps)
        H, W = grid
        first = self.decoder1.guide(maps[0], (2 * H, 2 * W)), self.decoder1.kernel()
        second = self.decoder2.guide(maps[1], (4 * H, 4 * W)), self.decoder2.kernel()

        def decode(x: Tensor) -> Tensor:
            y = rearrange(x.float(), "B T H W C -> (B T) H W C").permute(0, 3, 1, 2)
            y = self.decoder2.logits(self.decoder1(y, *first), *second, self.head)
            return rearrange(y, "(B T) 1 h w -> B T h w", B=x.shape[0])

        return decode

    def chunk(self, B: int, device: torch.device) -> int:
        """How many classes of B images make a chunk."""
        if self.class_chunk > 0:
            return self.class_chunk
        if not may_overwrite() and not self.recompute:
            return 1 << 30
        return chunk_length(B * self.grid[0] * self.grid[1] * self.widest * 4, device)


def _projection(in_dim: int, out_dim: int) -> nn.Sequential | None:
    if out_dim == 0:
        return None
    return nn.Sequential(nn.Conv2d(in_dim, out_dim, kernel_size=3, padding=1), nn.ReLU())


def _parts(text_dim: int, volumes: Sequence[tuple[int, int]]) -> list[tuple[slice, slice]]:
    """The channels of image and text features that make each volume."""
    parts = [(slice(0, text_dim), slice(0, text_dim))]
    image_end = text_end = text_dim
    for image, text in volumes:
        own = slice(text_end, text_end + text) if text else parts[0][1]
        parts.append((slice(image_end, image_end + image), own))
        image_end, text_end = image_end + image, text_end + text
    return parts


def _joined(tensors: list[Tensor]) -> Tensor:
    """Concatenated along the last dimension; no copy of a single one."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=-1)

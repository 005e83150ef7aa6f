"""CATSeg, the meta-architecture: start reading here.

image -> crops -> CLIP features and guidance maps -> head: cost volume, aggregation, decoder
      -> loss, or probabilities merged over crops -> the image's own size.

B images or crops, T classes, D text width, H and W positions, K the side of a crop in pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_sem_seg_head,
)
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor, nn

from cat_seg.modeling.aggregator import ClassLogits
from cat_seg.modeling.aggregator.aggregator import LEFT_OUT
from cat_seg.modeling.clip import clip_sizes
from cat_seg.modeling.int8 import int8_linears
from cat_seg.modeling.pieces import compile_for_inference, piece_length, shrink_pieces
from cat_seg.modeling.sliding_window import TileGrid, resize
from cat_seg.plugin.config import AMP_DTYPES, generation_settings
from cat_seg.plugin.head import CATSegHead

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": torch.float32, **AMP_DTYPES}
# Crops that the encoders take at once on a CPU, so that their weights are read less often. The
# aggregator takes one: its volume is what needs memory.
CPU_ENCODED_CROPS = 3


@META_ARCH_REGISTRY.register()
class CATSeg(nn.Module):
    """Open-vocabulary semantic segmentation, of either published generation.

    The 2023 model takes its guidance from a backbone; the 2024 model has none and upsamples
    intermediate layers of CLIP instead.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    clip_pixel_mean: Tensor
    clip_pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone | None,
        sem_seg_head: CATSegHead,
        in_features: Sequence[str] = (),
        guidance_dims: Sequence[int] = (256, 128),
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        clip_pixel_mean: Sequence[float],
        clip_pixel_std: Sequence[float],
        size_divisibility: int = 32,
        sliding_window: TileGrid | None = None,
        crop_batch: int = 0,
        train_backbone: bool = False,
        labels_only: bool = False,
        precision: str = "float32",
        int8_encoders: bool = False,
        compiled: bool = False,
    ) -> None:
        """
        Args:
            backbone: whose maps guide the aggregation; None takes CLIP's intermediate layers.
            sem_seg_head: a `CATSegHead`.
            in_features: the backbone's maps, shallowest first.
            guidance_dims: channels of the upsampled CLIP layers, without a backbone.
            pixel_mean, pixel_std: the backbone's normalisation of RGB in 0..255.
            clip_pixel_mean, clip_pixel_std: CLIP's.
            size_divisibility: images are padded to multiples of this, in pixels.
            sliding_window: tiles of inference; None to see the image once as a whole.
            crop_batch: crops taken at once in inference; 0 chooses for the device.
            train_backbone: whether the backbone is trained; its `norm0` never is.
            labels_only: inference returns labels and scores instead of every class's map.
            precision: of autocast in inference, "float32" (none), "bf16" or "fp16".
            int8_encoders: quantise the encoders' linear layers in inference on CPU.
            compiled: in inference, compile the encoders and what the aggregator does with a piece.

        Raises:
            ValueError: if the precision is another.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.in_features = tuple(in_features)
        self.size_divisibility = size_divisibility
        self.sliding_window = sliding_window
        self.crop_batch = crop_batch
        self.labels_only = labels_only
        if precision not in PRECISIONS:
            raise ValueError(f"TEST.PRECISION is {precision!r}; expected {', '.join(PRECISIONS)}.")
        self.precision = PRECISIONS[precision]
        self.int8_encoders = int8_encoders
        self.grid = sem_seg_head.predictor.transformer.grid
        for name, value in (
            ("pixel_mean", pixel_mean),
            ("pixel_std", pixel_std),
            ("clip_pixel_mean", clip_pixel_mean),
            ("clip_pixel_std", clip_pixel_std),
        ):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)
        if backbone is None:
            width = clip_sizes(sem_seg_head.predictor.clip_model).vision_width
            self.upsample1 = nn.ConvTranspose2d(width, guidance_dims[0], kernel_size=2, stride=2)
            self.upsample2 = nn.ConvTranspose2d(width, guidance_dims[1], kernel_size=4, stride=4)
        else:
            for name, parameter in backbone.named_parameters():
                if not train_backbone or "norm0" in name:
                    parameter.requires_grad_(False)
        if compiled:
            compile_for_inference(self, "encode")
            sem_seg_head.predictor.transformer.compile_pieces()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        backbone = None
        if generation_settings(cfg)["GUIDANCE"] == "backbone":
            backbone = build_backbone(cfg)
        sliding_window = None
        if cfg.TEST.SLIDING_WINDOW:
            sliding_window = TileGrid(
                cfg.TEST.SLIDING_KERNEL, cfg.TEST.SLIDING_OVERLAP, cfg.TEST.SLIDING_RESOLUTION
            )
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape() if backbone else {}),
            "in_features": head.IN_FEATURES if backbone else (),
            "guidance_dims": head.DECODER_GUIDANCE_DIMS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "clip_pixel_mean": cfg.MODEL.CLIP_PIXEL_MEAN,
            "clip_pixel_std": cfg.MODEL.CLIP_PIXEL_STD,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY
            if cfg.INPUT.SIZE_DIVISIBILITY > 0
            else 32,
            "sliding_window": sliding_window,
            "crop_batch": cfg.TEST.CROP_BATCH,
            "train_backbone": cfg.SOLVER.BACKBONE_MULTIPLIER > 0,
            "labels_only": cfg.TEST.LABELS_ONLY,
            "precision": cfg.TEST.PRECISION,
            "int8_encoders": cfg.TEST.INT8_ENCODERS,
            "compiled": cfg.TEST.COMPILE,
        }

    @property
    def device(self) -> torch.device:
        """Where images are moved to."""
        return self.pixel_mean.device

    @property
    def images_at_once(self) -> int:
        """How many images' crops CROP_BATCH has room for; without sliding window one, whose size
        no other need share."""
        return max(1, self.crop_batch // self.sliding_window.count) if self.sliding_window else 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in use: those of training in training mode, else those to be found."""
        return self.sem_seg_head.predictor.names

    def set_vocabulary(self, names: Sequence[str]) -> None:
        """Find these classes from now on; synonyms of one are parted by ", "."""
        self.sem_seg_head.predictor.set_vocabulary(names)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Loss in training mode, else segmentations.

        Args:
            batched_inputs: of each image "image", (3, h, w) RGB in 0..255; in training "sem_seg",
                (h, w) int64 labels; else optionally "height" and "width" of the result.

        Returns:
            in training {"loss_sem_seg"}; else of each image "sem_seg", (T, height, width)
            probabilities, or with `labels_only` "labels", (height, width) int64, and their
            "scores". Where not every class was aggregated, "aggregated_classes" has the indices
            of those that were, for each crop.
        """
        if self.training:
            return self.losses(batched_inputs)
        half = self.precision != torch.float32
        results: list[dict[str, Any]] = []
        with torch.no_grad(), torch.autocast(self.device.type, self.precision, enabled=half):
            while len(results) < len(batched_inputs):
                results += self._inference_that_fits(batched_inputs[len(results) :])
        return results

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """See `forward`."""
        images = [one["image"].to(self.device).float() for one in batched_inputs]
        targets = [one["sem_seg"].to(self.device) for one in batched_inputs]
        ignore = self.sem_seg_head.ignore_value
        labels = ImageList.from_tensors(targets, self.size_divisibility, ignore).tensor
        features, guidance = self.encode(*self.normalised(images, self.size_divisibility))
        return self.sem_seg_head.losses(features, guidance, labels)

    def _inference_that_fits(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """`inference` of the first images, again with fewer or in smaller pieces where the
        device's memory runs out."""
        while True:
            try:
                return self.inference(images[: self.images_at_once])
            except RuntimeError as error:
                if "out of memory" not in str(error).lower():
                    raise
                if self.crop_batch != 1:
                    self.crop_batch = 1
                elif not shrink_pieces(self.device):
                    raise
            logger.warning("Out of memory on %s; going on with smaller pieces.", self.device)
            if self.device.type in ("cuda", "mps"):
                getattr(torch, self.device.type).empty_cache()

    def inference(self, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Segment images, their crops in one row; see `forward`."""
        tiles = self.sliding_window
        pixels = [one["image"].to(self.device).float() for one in images]
        crops = [crop for image in pixels for crop in (tiles.cut(image) if tiles else [image])]
        logits = self.crop_logits(crops)
        each = len(crops) // len(images)
        return [self.merged(one, logits[i * each : (i + 1) * each]) for i, one in enumerate(images)]

    def crop_logits(self, crops: Sequence[Tensor]) -> list[ClassLogits]:
        """The logits of crops of (3, h, w): first all are encoded, then all aggregated."""
        cpu = self.device.type == "cpu"
        batch = self.crop_batch or (CPU_ENCODED_CROPS if cpu else len(crops))
        divisibility = 0 if self.sliding_window else self.size_divisibility
        with int8_linears(self.int8_encoders):
            encoded = [
                self.encode(*self.normalised(crops[i : i + batch], divisibility))
                for i in range(0, len(crops), batch)
            ]
        features = torch.cat([of_some for of_some, _ in encoded])
        guidance = [torch.cat(maps) for maps in zip(*(g for _, g in encoded), strict=True)]
        del encoded
        return self.sem_seg_head(features, guidance, self.crop_batch or (1 if cpu else 0))

    def merged(self, one: dict[str, Any], logits: list[ClassLogits]) -> dict[str, Any]:
        """The result for an image from the logits of its crops; see `forward`."""
        image, tiles = one["image"], self.sliding_window
        height, width = one.get("height", image.shape[-2]), one.get("width", image.shape[-1])

        def probabilities(classes: Tensor) -> Tensor:
            """The maps of some classes, (len(classes), height, width)."""
            maps = torch.stack([crop.of(classes) for crop in logits])
            if tiles is None:
                return sem_seg_postprocess(maps[0].sigmoid(), image.shape[-2:], height, width)
            maps = tiles.merge(resize(maps, tiles.kernel).sigmoid_())
            return sem_seg_postprocess(maps, maps.shape[-2:], height, width)

        result = self.assemble(probabilities, logits, height, width)
        if logits[0].classes is not None:
            result["aggregated_classes"] = [crop.classes for crop in logits]
        return result

    def assemble(
        self, probabilities: Callable[[Tensor], Tensor], logits: list[ClassLogits],
        height: int, width: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Merge class by class, in pieces, so that no second volume of all classes exists."""
        T = len(self.class_names)
        found = [crop.classes for crop in logits if crop.classes is not None]
        classes = torch.cat(found).unique() if found else torch.arange(T, device=self.device)
        side = self.sliding_window.resolution if self.sliding_window else 0
        length = piece_length(4 * max(height * width, len(logits) * side**2), self.device)
        left_out = torch.tensor(LEFT_OUT, device=self.device).sigmoid()
        if not self.labels_only:
            sem_seg = (
                left_out.repeat(T, height, width) if found else left_out.new_empty(T, height, width)
            )
            for piece in classes.split(length):
                sem_seg[piece] = probabilities(piece)
            return {"sem_seg": sem_seg}
        scores = left_out.repeat(height, width)
        labels = torch.zeros(height, width, dtype=torch.long, device=self.device)
        for piece in classes.split(length):
            for index, maps in zip(piece.tolist(), probabilities(piece), strict=True):
                labels.masked_fill_(maps > scores, index)
                torch.maximum(scores, maps, out=scores)
        return {"labels": labels, "scores": scores}

    def normalised(
        self, images: Sequence[Tensor], divisibility: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Normalise images of (3, h, w) and pad them to one size.

        Args:
            images: RGB in 0..255.
            divisibility: that size is a multiple of this, in pixels; 0 for any.

        Returns:
            (B, 3, h, w) for CLIP and for the backbone, if there is one.
        """

        def batch(mean: Tensor, std: Tensor) -> Tensor:
            scaled = [(image - mean) / std for image in images]
            return ImageList.from_tensors(scaled, divisibility).tensor

        clip = batch(self.clip_pixel_mean, self.clip_pixel_std)
        return clip, batch(self.pixel_mean, self.pixel_std) if self.backbone is not None else None

    def encode(self, clip_images: Tensor, images: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Features and guidance of normalised images.

        Returns:
            (B, D, H, W) dense CLIP features, and maps of H x W, 2 H x 2 W and 4 H x 4 W.
        """
        H, W = self.grid
        predictor = self.sem_seg_head.predictor
        patch = clip_sizes(predictor.clip_model).patch_size
        dense = predictor.encode_image(resize(clip_images, (H * patch, W * patch)))
        if self.backbone is None:
            first, second = dense.intermediates
            return dense.final, [dense.final, self.upsample1(first), self.upsample2(second)]
        assert images is not None
        stride = self.backbone.output_shape()[self.in_features[-1]].stride
        maps = self.backbone(resize(images, (H * stride, W * stride)))
        return dense.final, [maps[name] for name in reversed(self.in_features)]

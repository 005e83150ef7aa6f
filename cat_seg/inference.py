"""From pictures and text features to a segmentation: tiles, chunks, precision, merging.

The network (`cat_seg.model`) knows nothing of this. An `InferencePlan` says how, and `Inference`
follows it; what it learns on the way (memory that ran out) stays in that object.

B images or crops, T classes, H and W pixels, K the side of a crop in pixels.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from cat_seg.errors import CATSegError
from cat_seg.modeling import fused
from cat_seg.modeling.aggregator import ClassLogits, StreamedLogits
from cat_seg.modeling.aggregator.aggregator import LEFT_OUT
from cat_seg.modeling.chunks import chunk_length, free_bytes, may_be_smaller, smaller_chunks
from cat_seg.modeling.int8 import int8_linears
from cat_seg.modeling.merging import Merging
from cat_seg.modeling.sliding_window import TileGrid, resize

if TYPE_CHECKING:
    from cat_seg.model import CATSeg

logger = logging.getLogger(__name__)

# Types of autocast by name.
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = {"float32": torch.float32, **AUTOCAST}
# CUDA graphs that are kept of a function.
GRAPHS = 4
# Crops that the encoders take at once on a CPU, so that their weights are read less often. The
# aggregator takes one: its volume is what needs memory.
CPU_ENCODED_CROPS = 3
# What grows with the vocabulary is kept if it takes no more than this share of the free memory.
KEPT_SHARE = 0.5


@dataclass(frozen=True)
class InferencePlan:
    """How pictures are worked off.

    What changes a result beyond rounding: `sliding_window`, `precision`, `int8_encoders`,
    `max_classes` and `representatives`.

    Attributes:
        sliding_window: tiles; None to see the image once as a whole.
        crop_batch: crops taken at once; 0 chooses for the device.
        precision: of autocast, "float32" (none), "bf16" or "fp16".
        int8_encoders: quantise the encoders' linear layers, on CPU.
        compiled: run the encoders and the aggregator's blocks through `torch.compile`.
        cuda_graphs: on CUDA, record the network once a size and replay it: the processor then
            keeps up with the card. Takes memory of its own.
        max_classes: of each crop at most so many classes get maps, those most similar to it; 0 for
            the model's own rule (2023: all; 2024: 256).
        representatives: so many of the other classes stand for all others where classes meet, in
            class attention; 0 for none: the others count for nothing.
        memory: bytes that may be kept of what grows with the vocabulary (volume and logits); 0 is
            half of what is free. Where it does not suffice, classes are streamed: memory no longer
            grows with them, and time multiplies (`cat_seg.modeling.aggregator.StreamedLogits`).

    Raises:
        CATSegError: if the precision is another, or the memory negative.
    """

    sliding_window: TileGrid | None = None
    crop_batch: int = 0
    precision: str = "float32"
    int8_encoders: bool = False
    compiled: bool = False
    cuda_graphs: bool = False
    max_classes: int = 0
    representatives: int = 0
    memory: int = 0

    def selecting_as(self, other: InferencePlan) -> InferencePlan:
        """Return this plan with another's selection of classes."""
        return replace(self, max_classes=other.max_classes, representatives=other.representatives)

    def __post_init__(self) -> None:
        if self.memory < 0:
            raise CATSegError(f"memory is {self.memory}; expected bytes, or 0 for what is free.")
        if self.representatives and self.cuda_graphs:
            raise CATSegError("CUDA graphs cannot record representatives: their number varies.")
        if self.precision not in PRECISIONS:
            raise CATSegError(
                f"TEST.PRECISION is {self.precision!r}; expected {', '.join(PRECISIONS)}."
            )


@dataclass(frozen=True)
class EncodedImage:
    """What the aggregation needs of a picture, whatever the words; see `CATSeg.encode`."""

    features: Tensor  # (crops, D, h, w)
    guidance: tuple[Tensor, ...]  # of each crop, deepest first
    seen: tuple[int, int]  # height and width of the image that the network saw, in pixels
    canvas: tuple[int, int]  # the same with its padding
    plan: InferencePlan


@dataclass(frozen=True)
class Maps:
    """The probabilities of one image's classes, computed where they are asked for."""

    logits: Sequence[ClassLogits | StreamedLogits]  # of each crop
    probabilities: Callable[[Tensor], Tensor]  # indices (n,) -> (n, H, W)
    merging: Merging
    num_classes: int
    size: tuple[int, int]  # H, W
    side: int  # of the merged map of a sliding window, in pixels; 0 without
    device: torch.device
    divisor: int = 1  # of chunks, where memory ran out

    @property
    def aggregated(self) -> list[Tensor] | None:
        """Of each crop the classes that were aggregated; None where all were."""
        found = [crop.classes for crop in self.logits if crop.classes is not None]
        return found or None

    def volume(self) -> Tensor:
        """Every class's map, (T, H, W)."""
        T, found = self.num_classes, self.aggregated
        left_out = torch.tensor(LEFT_OUT, device=self.device).sigmoid()
        maps = left_out.repeat(T, *self.size) if found else left_out.new_empty(T, *self.size)
        for chunk in self._chunks():
            maps[chunk] = self.probabilities(chunk)
        return maps

    def best(self) -> tuple[Tensor, Tensor]:
        """The best class of each pixel, (H, W) int32, and its probability, (H, W).

        On a CPU, and where that pays, only where a class can be it, see `Merging`; on a GPU, which
        merges all classes in the time of a few launches, class by class, in chunks.
        """
        classes, cpu = self._classes(), self.device.type == "cpu"
        if cpu and self.merging.pays(len(classes)):
            labels, scores = self._blank()
            bytes_each = 4 * len(self.logits) * math.prod(self.logits[0].map_size)
            with smaller_chunks(self.divisor):
                chunks = classes.split(chunk_length(bytes_each, self.device))
            logits = self.logits
            if self.merging.best(chunks, lambda some: [c.of(some) for c in logits], labels, scores):
                return labels, scores
        labels, scores = self._blank()
        for chunk in self._chunks():
            maps = self.probabilities(chunk)
            if cpu:  # torch's maximum over the first dimension is slower
                for index, one in zip(chunk.tolist(), maps, strict=True):
                    labels.masked_fill_(one > scores, index)
                    torch.maximum(scores, one, out=scores)
                continue
            best, at = maps.max(dim=0)
            labels = torch.where(best > scores, chunk.int()[at], labels)
            torch.maximum(scores, best, out=scores)
        return labels, scores

    def _blank(self) -> tuple[Tensor, Tensor]:
        """Labels and scores of pixels that no class has been entered in."""
        scores = torch.tensor(LEFT_OUT, device=self.device).sigmoid().repeat(*self.size)
        return torch.zeros(self.size, dtype=torch.int32, device=self.device), scores

    def _classes(self) -> Tensor:
        """The classes that were aggregated for any crop, ascending."""
        if found := self.aggregated:
            return torch.cat(found).unique()
        return torch.arange(self.num_classes, device=self.device)

    def _chunks(self) -> Sequence[Tensor]:
        merged = 1 if fused.merge_applies(torch.empty(0, device=self.device)) else len(self.logits)
        pixels = max(self.size[0] * self.size[1], merged * self.side**2)
        with smaller_chunks(self.divisor):
            return self._classes().split(chunk_length(4 * pixels, self.device))


class Inference:
    """Follow a plan with a model. Safe to share between threads."""

    def __init__(self, model: CATSeg, plan: InferencePlan) -> None:
        self.model = model
        self.plan = plan
        self.crop_batch = plan.crop_batch
        self._divisor = 1  # of chunks, since memory ran out
        self._compiled: Callable[..., tuple[Tensor, list[Tensor]]] | None = None
        self._encode_crops: Callable[..., Any] = self._encode
        self._aggregate: Callable[..., Any] = self._predict
        if plan.cuda_graphs:
            self._encode_crops = CapturedFunction(self._encode)
            self._aggregate = CapturedFunction(self._predict)

    def __reduce__(self) -> tuple[type[Inference], tuple[CATSeg, InferencePlan]]:
        return Inference, (self.model, self.plan)  # a copy of the model gets one of its own

    @property
    def images_at_once(self) -> int:
        """How many images' crops the batch has room for; without sliding window one, whose size
        no other need share."""
        tiles = self.plan.sliding_window
        return max(1, self.crop_batch // tiles.count) if tiles else 1

    def __call__(
        self, images: Sequence[Tensor], text: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[Maps]:
        """Segment images that share a batch.

        Args:
            images: (3, h, w) RGB in 0..255, on any device.
            text: (T, P, D) text features.
            sizes: height and width of each result, in pixels.
        """
        with self._settings():
            encoded = self._encoded(images)
            return self._aggregated(encoded, text, sizes)

    def encode(self, images: Sequence[Tensor]) -> list[EncodedImage]:
        """Encode images, together where there are tiles; `decode` costs the aggregation only."""
        batches = [images] if self.plan.sliding_window else [[image] for image in images]
        while True:
            try:
                with self._settings():
                    return [one for batch in batches for one in self._encoded(batch)]
            except RuntimeError as error:
                self.after_out_of_memory(error)

    def decode(self, encoded: EncodedImage, text: Tensor, size: tuple[int, int]) -> Maps:
        """Segment an encoded image; arguments as for `__call__`."""
        with self._settings():
            return self._aggregated([encoded], text, [size])[0]

    def after_out_of_memory(self, error: RuntimeError) -> None:
        """Go on with fewer crops, or smaller chunks, after memory ran out.

        Raises:
            RuntimeError: `error`, if it is another.
            CATSegError: if nothing can be made smaller.
        """
        device = self.model.device
        if not _ran_out(error):
            raise error
        if self.crop_batch != 1:
            self.crop_batch = 1
        elif may_be_smaller(self._divisor, device):
            self._divisor *= 2
        else:
            raise CATSegError(
                f"The memory of {device} does not suffice ({str(error).strip().splitlines()[0]}); "
                "take a smaller picture, fewer words or another device."
            ) from error
        logger.warning("Out of memory on %s; going on with smaller chunks.", device)
        for function in (self._encode_crops, self._aggregate):
            if isinstance(function, CapturedFunction):
                function.forget()
        if device.type in ("cuda", "mps"):
            getattr(torch, device.type).empty_cache()

    def _encode(self, clip: Tensor, backbone: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """`CATSeg.encode_crops`, compiled when it is first needed if the plan says so."""
        if not self.plan.compiled:
            return self.model.encode_crops(clip, backbone)
        if self._compiled is None:
            self.model.predictor.transformer.compile_blocks()
            self._compiled = torch.compile(self.model.encode_crops)
        return self._compiled(clip, backbone)

    def _predict(self, *arguments: Any) -> list[ClassLogits]:
        return self.model.predictor(*arguments)  # type: ignore[no-any-return]

    def _settings(self) -> _Settings:
        return _Settings(self.plan, self.model.device, self._divisor)

    def _encoded(self, images: Sequence[Tensor]) -> list[EncodedImage]:
        model, tiles = self.model, self.plan.sliding_window
        pixels = [image.to(model.device).float() for image in images]
        crops = [crop for image in pixels for crop in (tiles.cut(image) if tiles else [image])]
        cpu = model.device.type == "cpu"
        batch = self.crop_batch or (CPU_ENCODED_CROPS if cpu else len(crops))
        divisibility = 1 if tiles else model.config.size_divisibility
        with int8_linears(self.plan.int8_encoders):
            parts = [
                self._encode_crops(*model.normalize(crops[i : i + batch], divisibility))
                for i in range(0, len(crops), batch)
            ]
        features = torch.cat([part for part, _ in parts])
        guidance = [torch.cat(maps) for maps in zip(*(g for _, g in parts), strict=True)]
        each = len(crops) // len(images)
        encoded = []
        for i, image in enumerate(images):
            rows = slice(i * each, (i + 1) * each)
            height, width = image.shape[-2:]
            canvas = (height + -height % divisibility, width + -width % divisibility)
            encoded.append(
                EncodedImage(
                    features[rows], tuple(g[rows] for g in guidance), (height, width), canvas,
                    self.plan,
                )
            )  # fmt: skip
        return encoded

    def _aggregated(
        self, encoded: Sequence[EncodedImage], text: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[Maps]:
        features = torch.cat([one.features for one in encoded])
        guidance = [
            torch.cat(maps) for maps in zip(*(one.guidance for one in encoded), strict=True)
        ]
        cpu = self.model.device.type == "cpu"
        batch = self.crop_batch or (1 if cpu else 0)
        if self._streams(len(text), len(features), batch):
            logits = self.model.predictor(features, guidance, text, stream=True)
        else:
            selection = (self.plan.max_classes, self.plan.representatives)
            logits = self._aggregate(features, guidance, text, batch, *selection)
        each = len(logits) // len(encoded)
        crops = [logits[i * each : (i + 1) * each] for i in range(len(encoded))]
        return [
            self._maps(image, of_image, len(text), size)
            for image, of_image, size in zip(encoded, crops, sizes, strict=True)
        ]

    def _streams(self, T: int, crops: int, batch: int) -> bool:
        """Whether T classes of so many crops would take too much memory to be kept."""
        aggregator = self.model.predictor.transformer
        limit = self.plan.memory or KEPT_SHARE * free_bytes(self.model.device)
        too_much = 0 < limit < aggregator.kept_bytes(T, crops, batch)
        return too_much and aggregator.streams(T, self.plan.max_classes)

    def _maps(
        self,
        image: EncodedImage,
        logits: Sequence[ClassLogits | StreamedLogits],
        T: int,
        size: tuple[int, int],
    ) -> Maps:
        first = torch.zeros(1, dtype=torch.long, device=self.model.device)
        for crop in logits:  # of classes that are streamed, one for all: they share sums
            _check_finite(crop.values if isinstance(crop, ClassLogits) else crop.of(first))
        tiles = self.plan.sliding_window

        def merged(classes: Tensor) -> Tensor:
            maps = torch.stack([crop.of(classes) for crop in logits])
            if tiles is None:
                return maps.sigmoid_()[0]
            if fused.merge_applies(maps):
                return fused.merge(maps, tiles.corners, tiles.kernel, tiles.resolution)
            return tiles.merge(resize(maps, tiles.kernel).sigmoid_())

        def probabilities(classes: Tensor) -> Tensor:
            maps = merged(classes)[None]
            if tiles is None:
                return resize_without_padding(maps, image.seen, image.canvas, size)[0]
            return resize(maps, size)[0]

        map_size = logits[0].map_size
        if tiles is None:
            merging = Merging.of_whole(map_size, image.seen, image.canvas, size)
        else:
            merging = Merging.of_tiles(map_size, tiles, size)
        side = tiles.resolution if tiles else 0
        device, divisor = self.model.device, self._divisor
        return Maps(logits, probabilities, merging, T, size, side, device, divisor)


def _ran_out(error: RuntimeError) -> bool:
    """Whether it says that memory ran out, of a card or of a CPU (as Linux or Windows has it)."""
    text = str(error).lower()
    return any(x in text for x in ("out of memory", "can't allocate memory", "not enough memory"))


def _check_finite(logits: Tensor) -> None:
    """Refuse logits by which no pixel could be labelled.

    Raises:
        CATSegError: if they hold NaN or infinity.
    """
    if not torch.isfinite(logits.sum(dtype=torch.float32)):  # faster than looking at each
        raise CATSegError(
            "The model's logits hold NaN or infinity: its weights are damaged (get or save them "
            "again), or fp16 has no room for them (take bf16 or float32)."
        )


class CapturedFunction:
    """A function that on CUDA is recorded as a graph for each size of its tensors, and replayed.

    Safe to share between threads, which take turns. Results are copies: the graph's own memory is
    written again by the next call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._lock = threading.Lock()
        self._graphs: OrderedDict[object, tuple[torch.cuda.CUDAGraph, list[Tensor], Any]]
        self._graphs = OrderedDict()

    def __call__(self, *arguments: Any) -> Any:
        """Arguments and results are tensors, and lists and tuples of them, and what they hold."""
        leaves, structure = tree_flatten(arguments)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if tensors[0].device.type != "cuda":
            return self.function(*arguments)
        key = (structure, *((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves))
        with self._lock:
            if key not in self._graphs:
                self._graphs[key] = self._record(leaves, structure)
                if len(self._graphs) > GRAPHS:
                    self._graphs.popitem(last=False)
            graph, inputs, results = self._graphs[key]
            self._graphs.move_to_end(key)
            for mine, given in zip(inputs, tensors, strict=True):
                mine.copy_(given)
            graph.replay()
            return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, results)

    def forget(self) -> None:
        """Give back the memory of all graphs."""
        with self._lock:
            self._graphs.clear()

    def _record(
        self, leaves: list[Any], structure: TreeSpec
    ) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Any]:
        mine = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments = tree_unflatten(mine, structure)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what is done once only must not be recorded
            for _ in range(2):
                self.function(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = self.function(*arguments)
        return graph, [leaf for leaf in mine if isinstance(leaf, Tensor)], results


class _Settings:
    """The contexts in which a plan's arithmetic runs."""

    def __init__(self, plan: InferencePlan, device: torch.device, divisor: int) -> None:
        dtype = PRECISIONS[plan.precision]
        half = dtype != torch.float32
        self._contexts = [
            torch.no_grad(),
            # A graph must not hold what the cache of autocast frees.
            torch.autocast(device.type, dtype, cache_enabled=not plan.cuda_graphs)
            if half
            else None,
            smaller_chunks(divisor),
        ]

    def __enter__(self) -> None:
        for context in self._contexts:
            if context is not None:
                context.__enter__()

    def __exit__(self, *error: object) -> None:
        for context in reversed(self._contexts):
            if context is not None:
                context.__exit__(*error)  # type: ignore[arg-type]


def resize_without_padding(
    maps: Tensor, seen: tuple[int, int], canvas: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Resize the part of maps that shows the image, and not its padding (bilinear).

    Args:
        maps: (B, C, H, W), of the whole canvas.
        seen: height and width of the image on it, at its top left, in pixels.
        canvas: height and width of the canvas, in pixels.
        size: height and width of the result.

    Returns:
        (B, C, *size)
    """
    if seen == canvas:
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)
    scales = [
        out / (m * image / whole)
        for out, m, image, whole in zip(size, maps.shape[-2:], seen, canvas, strict=True)
    ]
    # A side as long as before would be copied, whatever its scale; one longer is not.
    asked = [out + (out == m) for out, m in zip(size, maps.shape[-2:], strict=True)]
    resized = torch.ops.aten.upsample_bilinear2d(maps, asked, False, scales[0], scales[1])
    return resized[..., : size[0], : size[1]]

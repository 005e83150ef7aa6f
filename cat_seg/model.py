"""CATSeg, the model: start reading here.

image -> crops -> CLIP features and guidance maps -> cost volume, aggregation, decoder -> logits

The network computes logits of images and text features. How a picture of any size becomes a
segmentation (tiles, chunks, precision) is an `InferencePlan`, followed by `cat_seg.inference`.

B images or crops, T classes, P prompt templates, D text width, H and W positions.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg import hub, images, learning, registry, saved, video
from cat_seg.certificate import Certificate
from cat_seg.errors import CATSegError
from cat_seg.inference import EncodedImage, Inference, InferencePlan, Maps
from cat_seg.loading import load_initial_weights
from cat_seg.model_config import ModelConfig
from cat_seg.modeling import training_free
from cat_seg.modeling.guidance.resnet import ResNet, ResNetConfig
from cat_seg.modeling.guidance.swin import SwinTransformer
from cat_seg.modeling.guidance.timm_backbone import TimmBackbone
from cat_seg.modeling.predictor import CATSegPredictor, SegmentationHead
from cat_seg.modeling.sliding_window import TileGrid, resize
from cat_seg.modeling.text_embedding import VocabularyCache, default_cache_dir
from cat_seg.refinement import Refinement
from cat_seg.segmentation import Segmentation
from cat_seg.vocabulary import Vocabulary, Words

logger = logging.getLogger(__name__)

# OpenMP's threads do not come along with a fork, and torch would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

# A picture of which less than this share is labelled holds none of the words.
NOTHING_FOUND = 0.05


class CATSeg(nn.Module):
    """Open-vocabulary semantic segmentation, of either published generation.

    The 2023 model takes its guidance from a backbone; the 2024 model has none and upsamples
    intermediate layers of CLIP instead. The tensors have the released models' names.

    Attributes:
        config: the architecture.
        plan: how `predict` works off a picture unless told otherwise.
        default_words: classes that the model brings; () for none.
        threshold: `predict` leaves pixels whose best score is lower without label.
        certificate: of how few classes of a vocabulary need be computed, see
            `cat_seg.certificate`; it is followed with its words unless a plan is given.
        card: what people should know: "name", "photographs" (whether it knows them), ...
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    clip_pixel_mean: Tensor
    clip_pixel_std: Tensor

    def __init__(
        self,
        config: ModelConfig,
        *,
        backbone: nn.Module | None = None,
        in_features: Sequence[str] = (),
        stride: int = 0,
        sem_seg_head: SegmentationHead | None = None,
    ) -> None:
        """Build the network.

        Args:
            config: the architecture; weights are random, to be loaded.
            backbone: a guidance backbone to use instead of building the config's: images to maps
                by name.
            in_features: names of its maps, shallowest first.
            stride: of the last of them, in pixels.
            sem_seg_head: a head to use instead of building it.
        """
        super().__init__()
        self.config = config
        channels: list[int] = []
        if config.guidance in ("backbone", "both") and backbone is None:
            built = build_backbone(config)
            backbone, in_features = built, tuple(built.out_features)
            channels = [built.channels[name] for name in reversed(in_features)]
            stride = built.strides[in_features[-1]]
        self.backbone = backbone
        self.in_features = tuple(in_features)
        self.stride = stride
        self.sem_seg_head = sem_seg_head or SegmentationHead(CATSegPredictor(config, channels))
        self.grid = self.predictor.transformer.grid
        for name in ("pixel_mean", "pixel_std", "clip_pixel_mean", "clip_pixel_std"):
            values = torch.tensor(getattr(config, name)).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        if config.guidance in ("clip", "both"):
            self.upsample1, self.upsample2 = _upsampling(self.predictor)
        tiles = config.sliding_window
        grid = TileGrid(int(tiles[0]), tiles[1], int(tiles[2])) if tiles else None
        self.plan = InferencePlan(sliding_window=grid)
        self.default_words: tuple[str, ...] = ()
        self.threshold = 0.0
        self.certificate: Certificate | None = None
        self.card: dict[str, Any] = {"name": "", "photographs": True}
        self._vocabularies = VocabularyCache()

    # ---- the network ----

    @property
    def predictor(self) -> CATSegPredictor:
        """CLIP and the aggregator."""
        predictor = self.sem_seg_head.predictor
        assert isinstance(predictor, CATSegPredictor)
        return predictor

    @property
    def device(self) -> torch.device:
        """Where images are moved to."""
        return self.pixel_mean.device

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """Compute the logits of images that the network sees once, as a whole.

        Args:
            images: (B, 3, h, w) RGB in 0..255.
            text: (T, P, D) text features, see `encode_text`.

        Returns:
            (B, T, 4 H, 4 W)
        """
        padded = self.normalize(list(images.float()), self.config.size_divisibility)
        return self.logits(*self.encode_crops(*padded), text)

    def logits(self, features: Tensor, guidance: Sequence[Tensor], text: Tensor) -> Tensor:
        """Aggregate encoded images and texts to (B, T, 4 H, 4 W)."""
        every = torch.arange(len(text), device=text.device)
        logits = self.predictor(features, guidance, text)
        return torch.stack([one.of(every) for one in logits])

    def normalize(
        self, images: Sequence[Tensor], divisibility: int = 1
    ) -> tuple[Tensor, Tensor | None]:
        """Normalize images of (3, h, w) and pad them to one size.

        Args:
            images: RGB in 0..255.
            divisibility: that size is a multiple of this, in pixels.

        Returns:
            (B, 3, h, w) for CLIP and for the backbone, if there is one.
        """
        height = max(image.shape[-2] for image in images)
        width = max(image.shape[-1] for image in images)
        height, width = (side + -side % divisibility for side in (height, width))

        def batch(mean: Tensor, std: Tensor) -> Tensor:
            scaled = [(image - mean) / std for image in images]
            return torch.stack(
                [F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in scaled]
            )

        clip = batch(self.clip_pixel_mean, self.clip_pixel_std)
        return clip, batch(self.pixel_mean, self.pixel_std) if self.backbone is not None else None

    def encode_crops(
        self, clip_images: Tensor, backbone_images: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return features and guidance of normalized images.

        Returns:
            (B, D, H, W) dense CLIP features, and maps of H x W, 2 H x 2 W and 4 H x 4 W.
        """
        H, W = self.grid
        patch = self.predictor.clip_model.sizes.patch_size
        sources = []
        if self.backbone is not None:
            assert backbone_images is not None
            maps = self.backbone(resize(backbone_images, (H * self.stride, W * self.stride)))
            sources.append([maps[name] for name in reversed(self.in_features)])
        seen = resize(clip_images, (H * patch, W * patch))
        dense = self.predictor.encode_image(seen, sources[0][0] if sources else None)
        if self.config.guidance in ("clip", "both"):
            first, second = dense.intermediates
            sources.append([dense.final, self.upsample1(first), self.upsample2(second)])
        if len(sources) == 2:
            sources = [[torch.cat(pair, dim=1) for pair in zip(*sources, strict=True)]]
        features = self.predictor.beside(dense.final, clip_images)
        return features, sources[0] if sources else []

    # ---- the face ----

    @classmethod
    def from_pretrained(cls, source: str | Path = "synthetic", device: str = "") -> CATSeg:
        """Build a model and load its weights, in evaluation mode.

        Args:
            source: a name of `list_models()`, a folder that `save_pretrained` wrote, a released
                checkpoint file, "owner/repo" on the hub, an hf:// address or a URL; or
                "training-free:" and one of these or the name of any CLIP ("ViT-B-16:openai"), for
                that CLIP without an aggregator, see `without_aggregator`.
            device: "cuda", "mps", "cpu" or the like; the best that there is if empty.

        Raises:
            CATSegError: if there is no such model, or it cannot be had or does not fit.
        """
        target = best_device(device)
        variant, clip = training_free.parse(source)
        if variant:
            return saved.load_training_free(cls, variant, clip).to(target).eval()
        found = hub.resolve(source)
        load = saved.load_folder if found.kind == "folder" else saved.load_checkpoint
        return load(cls, found).to(target).eval()

    def without_aggregator(self, variant: str = training_free.DEFAULT) -> CATSeg:
        """Return this model's CLIP as a training-free segmenter: what the aggregation adds to.

        It shares CLIP's weights with this model.

        Args:
            variant: one of `cat_seg.modeling.training_free.VARIANTS`.

        Raises:
            CATSegError: if there is no such variant, or the weights of the second encoder that it
                needs cannot be had.
        """
        config = training_free.without_aggregator(self.config, variant)
        shared = CATSegPredictor(config, clip=self.predictor.clip_model)
        shared.prompt_tokens = self.predictor.prompt_tokens
        model = CATSeg(
            config,
            backbone=self.backbone if config.guidance == "backbone" else None,
            in_features=self.in_features,
            stride=self.stride,
            sem_seg_head=SegmentationHead(shared),
        )
        if config.guidance == "backbone" and self.backbone is None:
            load_initial_weights(model)
        model.plan, model.default_words = self.plan, self.default_words
        model.card = {**self.card, "name": f"{training_free.PREFIX}-{variant}:{self.card['name']}"}
        return model.to(self.device).eval()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write config.json, model.safetensors and README.md (model card), each whole or not."""
        saved.save_weights(self, Path(folder))
        saved.save_description(self, Path(folder))
        return Path(folder)

    def vocabulary(self, words: Words, *, background: Words = ()) -> Vocabulary:
        """Parse words and compute their text features, to be kept and shared by threads.

        Raises:
            CATSegError: if the words cannot be understood, see `Vocabulary.parse`.
        """
        parsed = Vocabulary.parse(words, background=background)
        strings = [*parsed.strings, *parsed.background]
        if parsed.features is not None:
            expected = (len(strings), len(self.predictor.templates), self.predictor.text_dim)
            if parsed.features.shape != expected:
                raise CATSegError(
                    f"The vocabulary's features are {tuple(parsed.features.shape)}, but this model "
                    f"needs {expected}: they are another model's. Give the words alone."
                )
            return replace(parsed, features=parsed.features.to(self.device))
        state = self.predictor.text_state()

        def encode() -> Tensor:
            return self.predictor.text_features(strings, default_cache_dir())

        return replace(parsed, features=self._vocabularies.get(tuple(strings), state, encode))

    def learn(
        self,
        words: Words,
        examples: Sequence[tuple[Any, Mapping[str, Any]]],
        *,
        share: float = 1.0,
    ) -> Vocabulary:
        """Learn classes from one to ten labelled pictures, for names that CLIP does not know.

        Args:
            words: all classes, those to be learned among them.
            examples: pictures, as `predict` takes them, each with the masks of classes to be
                learned by name: (H, W) bool, where all of the class is marked.
            share: of the pictures in what comes out; the rest is of the word. 1 for made-up names.

        Returns:
            the vocabulary with its text features, for `predict`; of other classes as they were.

        Raises:
            CATSegError: if there is no picture, or a mask is empty or of another size.
        """
        return learning.learn(self, words, examples, share=share)

    def encode(self, picture: Any, *, plan: InferencePlan | None = None) -> EncodedPicture:
        """Encode a picture, so that every further choice of words costs the aggregation only."""
        (encoded,) = self.encode_batch([picture], plan=plan)
        return encoded

    def encode_batch(
        self, pictures: Sequence[Any], *, plan: InferencePlan | None = None
    ) -> list[EncodedPicture]:
        """Encode pictures together, of any sizes, as `encode` does one by one."""
        pixels = [images.read(picture) for picture in pictures]
        inference = Inference(self, plan or self.plan)
        encoded = inference.encode([_resized(one, self.config) for one in pixels])
        paths = [str(one) if isinstance(one, str | Path) else None for one in pictures]
        return [EncodedPicture(*of_one) for of_one in zip(pixels, encoded, paths, strict=True)]

    def predict(
        self,
        picture: Any,
        words: Words | None = None,
        *,
        threshold: float | None = None,
        background: Words = (),
        plan: InferencePlan | None = None,
        refine: str | Refinement | None = None,
    ) -> Segmentation:
        """Segment a picture by words.

        Args:
            picture: whatever `cat_seg.images.read` takes, or a result of `encode`.
            words: the classes, see `Vocabulary.parse`; None takes the model's own.
            threshold: pixels whose best score is lower get the label -1; in [0, 1]. None takes the
                model's.
            background: words that compete and are reported as background.
            plan: how to work it off; None takes the model's.
            refine: what makes the masks follow the picture, such as "guided_filter", see
                `Segmentation.refined`; None for nothing.

        Raises:
            CATSegError: if the picture or the words cannot be understood.
        """
        vocabulary = self._vocabulary(words, background)
        inference = Inference(self, plan or self._plan_of(vocabulary))
        result = self._segment(inference, picture, vocabulary, threshold)
        return result.refined(refine) if refine else result

    def stream(
        self,
        source: Any,
        words: Words | None = None,
        *,
        batch_size: int = 1,
        threshold: float | None = None,
        background: Words = (),
        plan: InferencePlan | None = None,
        refine: str | Refinement | None = None,
        on_error: Callable[[Any, CATSegError], None] | None = None,
    ) -> Iterator[Segmentation]:
        """Segment pictures one after the other, in their order.

        Args:
            source: a folder, a glob, a path, or an iterable of pictures; of the path of a video, an
                animated picture or a stack, the frames.
            words, threshold, background, plan, refine: see `predict`.
            batch_size: pictures that are read together, by threads.
            on_error: called with a picture that cannot be read and the reason; None to raise it.
        """
        from concurrent.futures import ThreadPoolExecutor

        vocabulary = self._vocabulary(words, background)
        inference = Inference(self, plan or self._plan_of(vocabulary))
        if isinstance(source, str | Path):
            pictures: Iterable[Any] = (
                video.frames(source) if video.is_video(source) else images.find_images([source])
            )
        else:
            pictures = source
        iterator = iter(pictures)
        with ThreadPoolExecutor(max(1, batch_size)) as pool:
            while batch := list(islice(iterator, max(1, batch_size))):
                for picture, pixels in zip(
                    batch, [pool.submit(images.read, one) for one in batch], strict=True
                ):
                    try:
                        result = self._segment(inference, pixels.result(), vocabulary, threshold)
                        result = result.refined(refine) if refine else result
                    except CATSegError as error:
                        if on_error is None:
                            raise
                        on_error(picture, error)
                        continue
                    if isinstance(picture, str | Path):
                        result.path = str(picture)
                    yield result

    def _vocabulary(self, words: Words | None, background: Words) -> Vocabulary:
        if words is None:
            if not self.default_words:
                raise CATSegError("This model brings no words; name those to look for.")
            words = list(self.default_words)
        return self.vocabulary(words, background=background)

    def _plan_of(self, vocabulary: Vocabulary) -> InferencePlan:
        """The model's plan, by its certificate if it has one for these words."""
        if self.certificate is not None and self.certificate.applies(vocabulary):
            return self.certificate.plan(self.plan)
        return self.plan

    def _segment(
        self, inference: Inference, picture: Any, vocabulary: Vocabulary, threshold: float | None
    ) -> Segmentation:
        if threshold is None:
            threshold = self.threshold
        if not 0 <= threshold <= 1:
            raise CATSegError(f"threshold is {threshold}; expected a probability in [0, 1].")
        text = vocabulary.features
        assert text is not None
        if isinstance(picture, EncodedPicture):
            pixels, path, encoded = picture.pixels, picture.path, picture.encoded
        else:
            pixels, encoded = images.read(picture), None
            path = str(picture) if isinstance(picture, str | Path) else None
        size = (pixels.shape[0], pixels.shape[1])
        if encoded is not None:
            inference = Inference(self, encoded.plan.selecting_as(inference.plan))
        while True:
            try:
                if encoded is None:
                    maps = inference([_resized(pixels, self.config)], text, [size])[0]
                else:
                    maps = inference.decode(encoded, text, size)
                best, scores = maps.best()
                break
            except RuntimeError as error:
                inference.after_out_of_memory(error)
        labels = best.masked_fill_(scores < threshold, -1).cpu().numpy()
        return Segmentation(
            labels=labels,
            scores=scores.float().cpu().numpy(),
            classes=(*vocabulary.names, *vocabulary.background),
            synonyms=(*vocabulary.classes, *((b,) for b in vocabulary.background)),
            image=pixels,
            path=path,
            threshold=threshold,
            background=vocabulary.background,
            probability=lambda index: _map_of(maps, index),
            notes=self._notes(labels, threshold, inference.plan),
        )

    def _notes(self, labels: np.ndarray, threshold: float, plan: InferencePlan) -> tuple[str, ...]:
        notes = [training_free.NOTE] if self.config.training_free else []
        if self.certificate is not None and plan == self.certificate.plan(self.plan) != self.plan:
            notes.append(str(self.certificate))
        if threshold > 0 and (labels >= 0).mean() < NOTHING_FOUND:
            notes.append("None of the words seem to be in this picture.")
        if not self.card["photographs"]:
            notes.append(
                f"The model {self.card['name']!r} knows nothing but its synthetic world: of a "
                "photograph its labels tell nothing; take a published model, such as 'large-2024'."
            )
        return tuple(notes)


class EncodedPicture:
    """A picture and what the network made of it, whatever the words; for `CATSeg.predict`."""

    def __init__(self, pixels: np.ndarray, encoded: EncodedImage, path: str | None) -> None:
        self.pixels = pixels
        self.encoded = encoded
        self.path = path

    @property
    def features(self) -> Tensor:
        """CLIP's features of the picture seen as a whole, (D, h, w), in the space of the texts'.

        They are not of unit length; behind CLIP's D channels are those of further volumes.
        """
        one = self.encoded.features[-1]  # with tiles, the whole picture is the last
        if self.encoded.plan.sliding_window is not None:
            return one
        h, w = (
            max(1, round(side * seen / canvas))
            for side, seen, canvas in zip(
                one.shape[1:], self.encoded.seen, self.encoded.canvas, strict=True
            )
        )
        return one[:, :h, :w]


def best_device(asked: str = "") -> torch.device:
    """Return the device that is asked for, or the best that this machine has.

    Raises:
        CATSegError: if it is no device, or not there.
    """
    try:
        device = torch.device(asked or "cpu")
    except RuntimeError as error:
        raise CATSegError(
            f"{asked!r} is not a device; expected cuda, cuda:1, mps, cpu or the like."
        ) from error
    there: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if not asked:
        return torch.device(next((kind for kind, check in there.items() if check()), "cpu"))
    if device.type in there and not there[device.type]():
        raise CATSegError(f"Device {asked!r} cannot be used: torch finds none here.")
    return device


def _upsampling(predictor: CATSegPredictor) -> list[nn.ConvTranspose2d]:
    """From CLIP's guiding layers to maps of 2 H x 2 W and 4 H x 4 W."""
    sizes = predictor.clip_model.sizes
    convolutions = []
    for finer, number, channels in zip(
        (2, 4), predictor.guidance_layers, predictor.config.upsample_dims, strict=True
    ):
        layer = sizes.layers[number - 1]
        factor, rest = divmod(finer * layer.stride, sizes.patch_size)
        if rest or not factor:
            raise CATSegError(
                f"Layer {number} of CLIP has a position every {layer.stride} pixels, too many to "
                f"guide a map of one every {sizes.patch_size // finer}; name others in "
                "CLIP_GUIDANCE_LAYERS."
            )
        convolutions.append(nn.ConvTranspose2d(layer.channels, channels, factor, factor))
    return convolutions


def build_backbone(config: ModelConfig) -> SwinTransformer | ResNet | TimmBackbone:
    """Build the backbone that a config describes, with random weights.

    Raises:
        CATSegError: if it describes none.
    """
    part: TimmBackbone | None = registry.make(config, "guidance")  # or another with its attributes
    if part is not None:
        return part
    if config.swin is not None:
        return SwinTransformer(**config.swin)
    if config.resnet is not None:
        return ResNet(ResNetConfig(**config.resnet))
    raise CATSegError(
        "The model's guidance is a backbone, but neither swin nor resnet nor a part of the kind "
        "'guidance' is given."
    )


def _resized(pixels: np.ndarray, config: ModelConfig) -> Tensor:
    """(H, W, 3) uint8 to (3, h, w), resized (Pillow, bilinear) to the config's shortest edge."""
    height, width = pixels.shape[:2]
    scale = min(config.min_size / min(height, width), config.max_size / max(height, width))
    size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def _map_of(maps: Maps, index: int) -> np.ndarray:
    with torch.no_grad():
        one = maps.probabilities(torch.tensor([index], device=maps.device))[0]
    return one.float().cpu().numpy()

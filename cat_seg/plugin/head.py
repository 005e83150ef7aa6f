"""CATSegHead: CLIP, the vocabulary's text features, the aggregator and the loss.

B images, T classes, P prompt templates, D text width, H and W positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from open_clip import CLIP
from torch import Tensor, nn

from cat_seg.class_lists import read_names
from cat_seg.modeling.aggregator import Aggregator, ClassLogits
from cat_seg.modeling.clip import (
    DenseFeatures,
    build_clip,
    clip_sizes,
    encode_dense,
    set_trainable,
    split_in_proj,
)
from cat_seg.modeling.losses import mask_bce
from cat_seg.modeling.pieces import without_autocast
from cat_seg.modeling.prompt_templates import get_templates
from cat_seg.modeling.text_embedding import default_cache_dir, embed_text
from cat_seg.plugin.config import generation_settings
from cat_seg.resources import project_file
from cat_seg.vocabulary import parse_vocabulary


@SEM_SEG_HEADS_REGISTRY.register()
class CATSegHead(nn.Module):
    """The predictor and the loss."""

    @configurable
    def __init__(self, *, predictor: CATSegPredictor, ignore_value: int = 255) -> None:
        """
        Args:
            predictor: see `CATSegPredictor`.
            ignore_value: label of pixels that belong to no class.
        """
        super().__init__()
        self.predictor = predictor
        self.ignore_value = ignore_value

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            "predictor": CATSegPredictor(cfg, input_shape),
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def forward(
        self, features: Tensor, guidance: Sequence[Tensor], batch: int = 0
    ) -> list[ClassLogits]:
        """See `CATSegPredictor.forward`."""
        return self.predictor(features, guidance, batch)

    def losses(
        self, features: Tensor, guidance: Sequence[Tensor], targets: Tensor
    ) -> dict[str, Tensor]:
        """The training loss.

        Args:
            features, guidance: see `CATSegPredictor.forward`.
            targets: (B, h, w) int64 labels in the training vocabulary, or `ignore_value`.

        Returns:
            "loss_sem_seg", a scalar.
        """
        logits = self.predictor(features, guidance)
        every = torch.arange(len(self.predictor.names), device=features.device)
        dense = torch.stack([image.of(every) for image in logits])
        return {"loss_sem_seg": mask_bce(dense, targets, self.ignore_value)}


class CATSegPredictor(nn.Module):
    """From image features and a vocabulary to a logit per class and position.

    In training mode the vocabulary is the training one, else the one of `set_vocabulary`. Text
    features are kept while the vocabulary, the text encoder's weights and its device stay the
    same, and are encoded anew otherwise.
    """

    @configurable
    def __init__(
        self,
        *,
        clip_model: CLIP,
        transformer: Aggregator,
        templates: Sequence[str],
        train_names: Sequence[str],
        test_names: Sequence[str],
        synonyms: str = "mean",
        last_residual: str = "token",
        guidance_layers: Sequence[int] = (),
        prompt_tokens: tuple[int, int] = (0, 0),
        train_text: bool = False,
        clip_weights: str = "",
        text_batch: int = 4096,
        cache_dir: str | None = None,
        recompute: bool = False,
    ) -> None:
        """
        Args:
            clip_model: of open_clip.
            transformer: the aggregator.
            templates: P prompt templates with a "{}" for the name.
            train_names, test_names: class names; the synonyms of one parted by ", ".
            synonyms: "mean" of a class's names, or its "first".
            last_residual: of CLIP's last block, "token" or "class".
            guidance_layers: CLIP blocks whose tokens guide, counted from 1.
            prompt_tokens: layers with visual prompt tokens, and how many each.
            train_text: encode the training vocabulary with gradients.
            clip_weights: where CLIP's weights come from when a checkpoint has none; see
                `load_clip_weights`.
            text_batch: tokens of a batch of texts.
            cache_dir: folder in which text features outlive the process; None for none.
            recompute: trade time for memory in training.
        """
        super().__init__()
        self.clip_model = clip_model
        self.transformer = transformer
        self.templates = tuple(templates)
        self.synonyms = synonyms
        self.last_residual = last_residual
        self.guidance_layers = tuple(guidance_layers)
        self.train_text = train_text
        self.clip_weights = clip_weights
        self.text_batch = text_batch
        self.cache_dir = cache_dir
        self.recompute = recompute
        self.train_names = _checked(train_names)
        self.test_names = _checked(test_names)
        self._text: dict[tuple[str, ...], tuple[Any, Tensor]] = {}
        depth, length = prompt_tokens
        self.prompt_tokens = None
        if depth and length:
            width = clip_sizes(clip_model).vision_width
            self.prompt_tokens = nn.Parameter(0.02 * torch.randn(depth, length, width))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        choice = generation_settings(cfg)
        clip = build_clip(head.CLIP_PRETRAINED)
        sizes = clip_sizes(clip)
        if head.TEXT_GUIDANCE_DIM != sizes.embed_dim:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.TEXT_GUIDANCE_DIM is {head.TEXT_GUIDANCE_DIM}, but the "
                f"features of {head.CLIP_PRETRAINED} are {sizes.embed_dim} wide; set it to that."
            )
        finetune = head.CLIP_FINETUNE
        if choice["SPLIT_QKV"]:
            split_in_proj(clip)
            finetune = "attention_qv" if finetune == "attention" else finetune
        set_trainable(clip, finetune, text=choice["TRAIN_TEXT"])
        guidance_dims = [head.APPEARANCE_GUIDANCE_DIM, *head.DECODER_GUIDANCE_DIMS]
        layers: Sequence[int] = ()
        if choice["GUIDANCE"] == "clip":
            count = sizes.vision_layers
            layers = head.CLIP_GUIDANCE_LAYERS or (count // 3, 2 * count // 3)
            expected = [sizes.embed_dim, *head.DECODER_GUIDANCE_DIMS]
            source = (
                f"{head.CLIP_PRETRAINED}'s features and MODEL.SEM_SEG_HEAD.DECODER_GUIDANCE_DIMS"
            )
        else:
            expected = [input_shape[name].channels for name in reversed(head.IN_FEATURES)]
            source = f"{cfg.MODEL.BACKBONE.NAME}'s {', '.join(reversed(head.IN_FEATURES))}"
        if list(guidance_dims) != expected:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.APPEARANCE_GUIDANCE_DIM and DECODER_GUIDANCE_DIMS are "
                f"{guidance_dims}, but {source} have {expected} channels; set them to these."
            )
        templates = get_templates(cfg.MODEL.PROMPT_ENSEMBLE_TYPE)
        hidden = head.HIDDEN_DIMS
        transformer = Aggregator(
            text_dim=sizes.embed_dim,
            prompt_dim=len(templates),
            grid=tuple(head.FEATURE_RESOLUTION),
            hidden_dim=hidden if isinstance(hidden, int) else hidden[0],
            num_layers=head.NUM_LAYERS,
            num_heads=head.NUM_HEADS,
            window=head.WINDOW_SIZES,
            attention_type=head.ATTENTION_TYPE,
            pooling=tuple(head.POOLING_SIZES),
            test_pooling=tuple(cfg.TEST.POOLING_SIZES) if cfg.TEST.POOLING_SIZES else None,
            text_guidance_dim=head.TEXT_GUIDANCE_PROJ_DIM,
            guidance_in_dims=guidance_dims,
            guidance_dim=head.APPEARANCE_GUIDANCE_PROJ_DIM,
            decoder_dims=head.DECODER_DIMS,
            decoder_guidance_dims=head.DECODER_GUIDANCE_PROJ_DIMS,
            class_padding=choice["CLASS_PADDING"],
            max_classes=choice["MAX_CLASSES"],
            class_chunk=head.CLASS_CHUNK,
            half_volume=cfg.TEST.HALF_VOLUME,
            recompute=cfg.MODEL.ACTIVATION_CHECKPOINTING,
        )
        cache = cfg.TEST.TEXT_CACHE
        # A JSON configuration has no published weights.
        published = "" if head.CLIP_PRETRAINED.endswith(".json") else head.CLIP_PRETRAINED
        return {
            "clip_model": clip,
            "transformer": transformer,
            "templates": templates,
            "train_names": vocabulary_of(head.TRAIN_CLASS_JSON, cfg.DATASETS.TRAIN),
            "test_names": vocabulary_of(head.TEST_CLASS_JSON, cfg.DATASETS.TEST),
            "synonyms": choice["SYNONYMS"],
            "last_residual": choice["LAST_RESIDUAL"],
            "guidance_layers": layers,
            "prompt_tokens": (head.PROMPT_DEPTH, head.PROMPT_LENGTH),
            "train_text": choice["TRAIN_TEXT"],
            "clip_weights": head.CLIP_WEIGHTS or published,
            "text_batch": head.TEXT_BATCH,
            "cache_dir": None if cache == "none" else cache or str(default_cache_dir()),
            "recompute": cfg.MODEL.ACTIVATION_CHECKPOINTING,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The vocabulary in use."""
        return self.train_names if self.training else self.test_names

    def set_vocabulary(self, names: Sequence[str]) -> None:
        """Change the vocabulary of inference.

        Args:
            names: class names; the synonyms of one parted by ", ".

        Raises:
            ValueError: if there are none, or one is empty.
        """
        self.test_names = _checked(names)

    def encode_image(self, images: Tensor) -> DenseFeatures:
        """(B, 3, h, w), normalised for CLIP -> dense features and the guidance layers' tokens."""
        return encode_dense(
            self.clip_model.visual,
            images,
            last_residual=self.last_residual,
            intermediate_layers=self.guidance_layers,
            prompts=self.prompt_tokens,
            recompute=self.recompute,
        )

    def text_features(self) -> Tensor:
        """Features of the vocabulary in use: (T, P, D), of unit length."""
        names = self.names
        if self.training and self.train_text:
            return self._embed(names, None)
        weights = [*self.clip_model.transformer.parameters(), self.clip_model.text_projection]
        # An optimiser step or a loaded checkpoint changes a parameter's version.
        state = [(id(w), w._version, w.device, w.dtype) for w in weights]
        kept = self._text.get(names)
        if kept is None or kept[0] != state:
            with torch.no_grad(), without_autocast(weights[0].device):
                kept = (state, self._embed(names, self.cache_dir))
            in_use = (self.train_names, self.test_names)
            self._text = {n: t for n, t in self._text.items() if n in in_use} | {names: kept}
        return kept[1]

    def _embed(self, names: Sequence[str], cache_dir: str | None) -> Tensor:
        return embed_text(
            self.clip_model,
            names,
            self.templates,
            synonyms=self.synonyms,
            batch_size=self.text_batch,
            cache_dir=cache_dir,
            recompute=self.recompute,
        )

    def forward(
        self, features: Tensor, guidance: Sequence[Tensor], batch: int = 0
    ) -> list[ClassLogits]:
        """Segment images into the vocabulary in use.

        Args:
            features: (B, D, H, W) dense CLIP features.
            guidance: maps of (B, ., H, W), (B, ., 2 H, 2 W), (B, ., 4 H, 4 W).
            batch: images aggregated at a time; 0 for all.

        Returns:
            the logits of each image.
        """
        return self.transformer(features, self.text_features(), guidance, batch)


def vocabulary_of(class_json: str, datasets: Sequence[str]) -> list[str]:
    """Class names of a JSON list, else of the first data set's metadata.

    Raises:
        ValueError: if neither is there.
    """
    if class_json:
        return read_names(project_file(class_json))
    for name in datasets[:1]:
        metadata = MetadataCatalog.get(name)
        names = getattr(metadata, "vocabulary", None) or getattr(metadata, "stuff_classes", None)
        if names:
            return list(names)
    raise ValueError(
        f"No class names: the data sets are {list(datasets)}, none of them with names, and "
        "TRAIN_CLASS_JSON or TEST_CLASS_JSON under MODEL.SEM_SEG_HEAD is empty. Name a JSON list."
    )


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    parse_vocabulary(names)
    return tuple(names)

"""CATSegHead: the library's predictor, the vocabularies of training and test, and the loss.

B images, T classes, P prompt templates, D text width, H and W positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from cat_seg import registry
from cat_seg.errors import CATSegError
from cat_seg.modeling import class_sampling
from cat_seg.modeling.aggregator import ClassLogits
from cat_seg.modeling.clip import set_trainable
from cat_seg.modeling.losses import Inside, mask_bce
from cat_seg.modeling.predictor import CATSegPredictor, SegmentationHead
from cat_seg.modeling.text_embedding import VocabularyCache, default_cache_dir
from cat_seg.plugin.config import generation_settings, model_config
from cat_seg.plugin.data.vocabulary import training_vocabulary, vocabulary_of
from cat_seg.vocabulary import parse_vocabulary


@SEM_SEG_HEADS_REGISTRY.register()
class CATSegHead(SegmentationHead):
    """In training mode the vocabulary is the training one, else the one of `set_vocabulary`."""

    @configurable
    def __init__(
        self,
        *,
        predictor: CATSegPredictor,
        train_names: Sequence[str],
        test_names: Sequence[str],
        ignore_value: int = 255,
        train_text: bool = False,
        clip_weights: str = "",
        cache_dir: str | Path | None = None,
        sampling: Callable[[Tensor, int], Tensor] | None = None,
        auxiliary: Sequence[tuple[str, Callable[[Inside], Tensor]]] = (),
    ) -> None:
        """
        Args:
            predictor: CLIP and the aggregator.
            train_names, test_names: class names; the synonyms of one separated by ", ".
            ignore_value: label of pixels that belong to no class.
            train_text: encode the training vocabulary with gradients.
            clip_weights: where CLIP's weights come from when a checkpoint has none; see
                `load_clip_weights`.
            cache_dir: folder in which text features outlive the process; None for none.
            sampling: chooses the classes that a batch teaches, see `cat_seg.modeling.
                class_sampling`; None for all.
            auxiliary: names of further losses, and what computes each, already weighted.
        """
        super().__init__(predictor)
        self.train_names = _checked(train_names)
        self.test_names = _checked(test_names)
        self.ignore_value = ignore_value
        self.train_text = train_text
        self.clip_weights = clip_weights
        self.cache_dir = cache_dir
        self.sampling = sampling
        self.auxiliary = tuple(auxiliary)
        if modules := [loss for _, loss in auxiliary if isinstance(loss, nn.Module)]:
            self.auxiliary_modules = nn.ModuleList(modules)
        self._features = VocabularyCache(2)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Read MODEL.SEM_SEG_HEAD; `input_shape` is empty without a backbone."""
        head = cfg.MODEL.SEM_SEG_HEAD
        config = model_config(cfg)
        train_text = generation_settings(cfg)["TRAIN_TEXT"]
        names = head.IN_FEATURES if config.guidance in ("backbone", "both") else ()
        if registry.names(config.parts, "guidance"):
            names = list(input_shape)  # which has those that guide, shallowest first
        channels = [input_shape[name].channels for name in reversed(names)]
        predictor = CATSegPredictor(
            config,
            channels,
            class_chunk=head.CLASS_CHUNK,
            half_volume=cfg.TEST.HALF_VOLUME,
            text_batch=head.TEXT_BATCH,
            recompute=cfg.MODEL.ACTIVATION_CHECKPOINTING,
        )
        _check_widths(cfg, predictor)
        finetune = head.CLIP_FINETUNE
        if config.split_qkv:  # what 2024 means by these names
            finetune = {"attention": "attention_qv", "full": "transformers"}.get(finetune, finetune)
        set_trainable(predictor.clip_model, finetune, text=train_text)
        cache = cfg.TEST.TEXT_CACHE
        # A JSON configuration has no published weights.
        published = "" if head.CLIP_PRETRAINED.endswith(".json") else head.CLIP_PRETRAINED
        return {
            "predictor": predictor,
            "train_names": training_vocabulary(head.TRAIN_CLASS_JSON, cfg.DATASETS.TRAIN).names,
            "test_names": vocabulary_of(head.TEST_CLASS_JSON, cfg.DATASETS.TEST),
            "ignore_value": head.IGNORE_VALUE,
            "train_text": train_text,
            "clip_weights": head.CLIP_WEIGHTS or published,
            "cache_dir": None if cache == "none" else cache or default_cache_dir(),
            "sampling": registry.make(config, "sampling"),
            "auxiliary": list(
                zip(
                    registry.names(config.parts, "loss"),
                    registry.make_all(config, "loss"),
                    strict=True,
                )
            ),
        }

    @property
    def names(self) -> tuple[str, ...]:
        """The vocabulary in use."""
        return self.train_names if self.training else self.test_names

    def set_vocabulary(self, names: Sequence[str]) -> None:
        """Change the vocabulary of inference.

        Args:
            names: class names; the synonyms of one separated by ", ".

        Raises:
            CATSegError: if there are none, or one is empty.
        """
        self.test_names = _checked(names)

    def text_features(self, classes: Tensor | None = None) -> Tensor:
        """Features of the vocabulary in use, or of some of its classes: (T, P, D), of unit length.

        In training with gradients, if the text encoder, or a part in its place, is trained.
        """
        if self.training and (self.train_text or self.predictor.text is not None):
            every = range(len(self.names)) if classes is None else classes.tolist()
            return self.predictor.encode_text([self.names[i] for i in every])
        names, cache_dir = self.names, self.cache_dir
        state = self.predictor.text_state()
        features = self._features.get(
            names, state, lambda: self.predictor.text_features(names, cache_dir)
        )
        return features if classes is None else features[classes.to(features.device)]

    def forward(
        self, features: Tensor, guidance: Sequence[Tensor], batch: int = 0
    ) -> list[ClassLogits]:
        """Segment images into the vocabulary in use, see `CATSegPredictor.forward`."""
        return self.predictor(features, guidance, self.text_features(), batch)

    def losses(
        self,
        features: Tensor,
        guidance: Sequence[Tensor],
        targets: Tensor,
        classes: Sequence[Tensor | None] = (),
    ) -> dict[str, Tensor]:
        """The training loss.

        An image teaches only the classes that its data set has, and each image counts the same.

        Args:
            features, guidance: see `CATSegPredictor.forward`.
            targets: (B, h, w) int64 labels, or `ignore_value`, or NOTHING; see `mask_bce`.
            classes: of each image the classes of the training vocabulary into which its labels
                count; None, or left out, for all.

        Returns:
            "loss_sem_seg" and one of each further loss, scalars.
        """
        every = torch.arange(len(self.names), device=features.device)
        shown = list(classes) or [None] * len(targets)
        taught = every
        if self.sampling is not None:
            present = class_sampling.present(targets, shown, self.ignore_value)
            taught = self.sampling(present, len(every)).to(every.device)
            targets, shown = class_sampling.restrict(targets, shown, taught, self.ignore_value)
        text = self.text_features(None if self.sampling is None else taught)
        volumes: list[Tensor] = []
        logits = self.predictor(
            features, guidance, text, inside=volumes if self.auxiliary else None
        )
        of_taught = torch.arange(len(taught), device=features.device)
        dense = torch.stack([image.of(of_taught) for image in logits])
        if all(some is None for some in shown):
            loss = mask_bce(dense, targets, self.ignore_value)
        else:
            losses = [
                mask_bce(
                    image[None, of_taught if some is None else some],
                    labels[None],
                    self.ignore_value,
                )
                for image, labels, some in zip(dense, targets, shown, strict=True)
            ]
            loss = torch.stack(losses).mean()
        inside = Inside(features, guidance, text, volumes, dense, targets, self.ignore_value)
        return {"loss_sem_seg": loss} | {f"loss_{n}": loss(inside) for n, loss in self.auxiliary}


def _check_widths(cfg: CfgNode, predictor: CATSegPredictor) -> None:
    """Hold the widths that a config repeats against those that the model has."""
    head, sizes = cfg.MODEL.SEM_SEG_HEAD, predictor.clip_model.sizes
    if head.TEXT_GUIDANCE_DIM not in (None, 0, sizes.embed_dim):
        raise CATSegError(
            f"MODEL.SEM_SEG_HEAD.TEXT_GUIDANCE_DIM is {head.TEXT_GUIDANCE_DIM}, but the "
            f"features of {head.CLIP_PRETRAINED} are {sizes.embed_dim} wide; leave it out."
        )
    expected, guidance = list(predictor.guidance_channels), predictor.config.guidance
    if guidance not in ("clip", "backbone"):
        return  # no published config repeats them
    if guidance == "clip":
        source = f"{head.CLIP_PRETRAINED}'s features and MODEL.SEM_SEG_HEAD.DECODER_GUIDANCE_DIMS"
    else:
        source = f"{cfg.MODEL.BACKBONE.NAME}'s {', '.join(reversed(head.IN_FEATURES))}"
    given = [head.APPEARANCE_GUIDANCE_DIM, *(head.DECODER_GUIDANCE_DIMS or expected[1:])]
    given[0] = expected[0] if given[0] is None else given[0]
    if given != expected:
        raise CATSegError(
            "MODEL.SEM_SEG_HEAD.APPEARANCE_GUIDANCE_DIM and DECODER_GUIDANCE_DIMS are "
            f"{given}, but {source} have {expected} channels; leave them out."
        )


def _checked(names: Sequence[str]) -> tuple[str, ...]:
    parse_vocabulary(names)
    return tuple(names)

"""CATSeg as detectron2's meta-architecture: batches of dicts in, losses or segmentations out.

Everything between is the library's; see `cat_seg.model` and `cat_seg.inference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone, build_model, build_sem_seg_head
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg import model, registry, saved
from cat_seg.errors import CATSegError
from cat_seg.inference import Inference, InferencePlan
from cat_seg.model_config import ModelConfig
from cat_seg.plugin.checkpointer import CATSegCheckpointer, local_weights
from cat_seg.plugin.config import inference_plan, load_config, model_config
from cat_seg.plugin.head import CATSegHead
from cat_seg.trust.text import read_json


@META_ARCH_REGISTRY.register()
class CATSeg(model.CATSeg):
    """The library's model, built from a config and called as detectron2 calls models.

    Attributes:
        labels_only: inference returns labels and scores instead of every class's map.
    """

    @configurable
    def __init__(
        self,
        *,
        config: ModelConfig,
        backbone: nn.Module | None,
        sem_seg_head: CATSegHead,
        in_features: Sequence[str] = (),
        stride: int = 0,
        train_backbone: bool = False,
        plan: InferencePlan | None = None,
        labels_only: bool = False,
    ) -> None:
        """
        Args:
            config: the architecture.
            backbone: whose maps guide the aggregation; None takes CLIP's intermediate layers.
            sem_seg_head: a `CATSegHead`.
            in_features: the backbone's maps, shallowest first.
            stride: of the last of them, in pixels.
            train_backbone: whether the backbone is trained; its `norm0` never is.
            plan: of inference.
            labels_only: see the class.
        """
        super().__init__(
            config,
            backbone=backbone,
            in_features=in_features,
            stride=stride,
            sem_seg_head=sem_seg_head,
        )
        if plan is not None:
            self.plan = plan
        self.labels_only = labels_only
        self._inference: Inference | None = None
        for name, parameter in backbone.named_parameters() if backbone is not None else ():
            if not train_backbone or "norm0" in name:
                parameter.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build backbone and head of a config."""
        config = model_config(cfg)
        backbone, shapes, names = _backbone(cfg, config)
        return {
            "config": config,
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, shapes),
            "in_features": names,
            "stride": shapes[names[-1]].stride if names else 0,
            "train_backbone": cfg.SOLVER.BACKBONE_MULTIPLIER > 0,
            "plan": inference_plan(cfg),
            "labels_only": cfg.TEST.LABELS_ONLY,
        }

    @property
    def head(self) -> CATSegHead:
        """The head, which knows the vocabularies."""
        assert isinstance(self.sem_seg_head, CATSegHead)
        return self.sem_seg_head

    @property
    def inference(self) -> Inference:
        """What follows `plan`; made anew when the plan is another."""
        if self._inference is None or self._inference.plan is not self.plan:
            self._inference = Inference(self, self.plan)
        return self._inference

    @property
    def images_at_once(self) -> int:
        """How many images a batch of inference should have."""
        return self.inference.images_at_once

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in use: those of training in training mode, else those to be found."""
        return self.head.names

    def set_vocabulary(self, names: Sequence[str]) -> None:
        """Find these classes from now on; synonyms of one are separated by ", "."""
        self.head.set_vocabulary(names)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:  # type: ignore[override]
        """Loss in training mode, else segmentations.

        Args:
            batched_inputs: of each image "image", (3, h, w) RGB in 0..255; in training "sem_seg",
                (h, w) int64 labels, and optionally "classes", see `CATSegHead.losses`; else
                optionally "height" and "width" of the result.

        Returns:
            in training {"loss_sem_seg"}; else of each image "sem_seg", (T, height, width)
            probabilities, or with `labels_only` "labels", (height, width) int32, and their
            "scores". Where not every class was aggregated, "aggregated_classes" has the indices
            of those that were, for each crop.
        """
        if self.training:
            return self.losses(batched_inputs)
        results: list[dict[str, Any]] = []
        while len(results) < len(batched_inputs):
            try:
                here = batched_inputs[len(results) :][: self.inference.images_at_once]
                results += self.segment(here)
            except RuntimeError as error:
                self.inference.after_out_of_memory(error)
        return results

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """See `forward`."""
        images = [one["image"].to(self.device).float() for one in batched_inputs]
        targets = [one["sem_seg"].to(self.device) for one in batched_inputs]
        divisibility = self.config.size_divisibility
        clip_images, backbone_images = self.normalize(images, divisibility)
        height, width = clip_images.shape[-2:]
        labels = torch.stack(
            [
                F.pad(
                    target,
                    (0, width - target.shape[1], 0, height - target.shape[0]),
                    value=self.head.ignore_value,
                )
                for target in targets
            ]
        )
        features, guidance = self.encode_crops(clip_images, backbone_images)
        classes = [one.get("classes") for one in batched_inputs]
        return self.head.losses(features, guidance, labels, classes)

    @torch.no_grad()
    def segment(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Segment images that share a batch; see `forward`."""
        sizes = [
            (one.get("height", one["image"].shape[-2]), one.get("width", one["image"].shape[-1]))
            for one in batched_inputs
        ]
        images = [one["image"] for one in batched_inputs]
        results = []
        for maps in self.inference(images, self.head.text_features(), sizes):
            if self.labels_only:
                labels, scores = maps.best()
                result: dict[str, Any] = {"labels": labels, "scores": scores}
            else:
                result = {"sem_seg": maps.volume()}
            if maps.aggregated is not None:
                result["aggregated_classes"] = maps.aggregated
            results.append(result)
        return results


def _backbone(
    cfg: CfgNode, config: ModelConfig
) -> tuple[nn.Module | None, dict[str, ShapeSpec], tuple[str, ...]]:
    """The guidance backbone, of detectron2 or of the config's parts, and its maps to be used."""
    if config.guidance not in ("backbone", "both"):
        return None, {}, ()
    if registry.names(config.parts, "guidance"):
        part = model.build_backbone(config)
        found = {
            name: ShapeSpec(channels=part.channels[name], stride=part.strides[name])
            for name in part.out_features
        }
        return part, found, tuple(part.out_features)
    backbone = build_backbone(cfg)
    return backbone, backbone.output_shape(), tuple(cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES)


def load_model(config_file: str | Path, opts: Sequence[str] = (), device: str = "") -> model.CATSeg:
    """Build the model of a YAML with its weights (MODEL.WEIGHTS), in evaluation mode.

    Args:
        config_file: a YAML, of the project or your own.
        opts: KEY VALUE pairs that override it.
        device: see `load_config`.

    Raises:
        CATSegError: if no weights are named, or they cannot be had or do not fit.
    """
    cfg = load_config(config_file, opts, device)
    if not cfg.MODEL.WEIGHTS:
        raise CATSegError(
            "MODEL.WEIGHTS is empty; give a file, a URL or hf://owner/repo/file, such as "
            "hf://hamacojr/CAT-Seg/model_final_base.pth."
        )
    weights = local_weights(cfg.MODEL.WEIGHTS)  # whatever is wrong with them shows at once
    built: CATSeg = build_model(cfg).eval()
    CATSegCheckpointer(built).load(str(weights))
    built.card |= {"name": Path(config_file).stem}
    description = weights.with_name(saved.CONFIG)
    if weights.name == saved.WEIGHTS and description.is_file():  # of a saved model
        about = read_json(description)
        saved.check_digest(weights, about)
        saved.apply_description(built, about)
    built.default_words = built.head.test_names
    return built

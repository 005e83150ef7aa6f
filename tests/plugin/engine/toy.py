"""A model of one convolution and a dataset of a few small images, to train in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cat_seg.plugin.config import add_cat_seg_config

NAME = "toy_dataset"
CLASSES = ["dark", "light"]


@META_ARCH_REGISTRY.register()
class ToySegmenter(nn.Module):
    """Tells light from dark; drops features at random, so that it needs the random state."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        # Named as in CATSeg, by which checkpoints tell what they hold.
        self.sem_seg_head = nn.Module()
        self.sem_seg_head.predictor = predictor = nn.Module()
        predictor.clip_model = nn.Module()
        predictor.clip_model.visual = nn.Module()
        predictor.clip_model.visual.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        predictor.transformer = nn.Conv2d(4, len(CLASSES), 1)
        self.unused = nn.Parameter(torch.ones(1))  # trains by name, but not in this model
        self.dropout = 0.5

    @property
    def head(self) -> nn.Conv2d:
        return self.sem_seg_head.predictor.transformer

    def forward(self, batch: list[dict]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        images = torch.stack([sample["image"] for sample in batch]).float() / 255
        features = F.dropout(
            self.sem_seg_head.predictor.clip_model.visual.conv1(images).relu(),
            self.dropout,
            self.training,
        )
        logits = self.head(features)  # B T H W
        if self.training:
            targets = torch.stack([sample["sem_seg"] for sample in batch])
            return {"loss_sem_seg": F.cross_entropy(logits, targets, ignore_index=255)}
        return [{"sem_seg": scores} for scores in logits.softmax(1)]


def register_toy_data(folder: Path, count: int = 7) -> list[dict[str, str]]:
    """Write `count` images of 16 x 16 with label maps, and register them (again)."""
    generator = np.random.default_rng(0)
    entries = []
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    for index in range(count):
        labels = generator.integers(0, 2, (4, 4), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        noise = generator.integers(0, 100, (16, 16, 3), dtype=np.uint8)
        entries.append(
            {
                "file_name": str(folder / "images" / f"{index}.png"),
                "sem_seg_file_name": str(folder / "labels" / f"{index}.png"),
            }
        )
        Image.fromarray(labels[..., None] * 100 + noise).save(entries[-1]["file_name"])
        Image.fromarray(labels).save(entries[-1]["sem_seg_file_name"])
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)
    DatasetCatalog.register(NAME, lambda: entries)
    MetadataCatalog.get(NAME).set(
        stuff_classes=CLASSES, vocabulary=CLASSES, ignore_label=255, evaluator_type="sem_seg"
    )
    return entries


def toy_config(output: Path, *opts: object) -> CfgNode:
    """A training of ten steps, on the CPU and without workers."""
    cfg = get_cfg()
    add_cat_seg_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.META_ARCHITECTURE", "ToySegmenter", "MODEL.DEVICE", "cpu"),
            *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", ()),
            *("INPUT.FORMAT", "RGB", "INPUT.COLOR_AUG_SSD", True),
            *("INPUT.MIN_SIZE_TRAIN", (16, 20, 24), "INPUT.MIN_SIZE_TEST", 16),
            *("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"),
            *("INPUT.CROP.SIZE", [16, 16], "INPUT.SIZE_DIVISIBILITY", 16),
            *("DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "SEED", 1),
            *("SOLVER.MAX_ITER", 10, "SOLVER.BASE_LR", 0.05, "SOLVER.WARMUP_ITERS", 0),
            *("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.CHECKPOINT_PERIOD", 4),
            *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0),
            *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "OUTPUT_DIR", str(output)),
            *opts,
        ]
    )
    return cfg

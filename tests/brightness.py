"""A model for tests of what surrounds a model: it segments by brightness alone."""

import json
from pathlib import Path

import numpy as np
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from PIL import Image
from torch import nn

SQUARES = ["black", "grey <1>", "white"]


@META_ARCH_REGISTRY.register()
class BrightnessSegmenter(nn.Module):
    """Class t of T is where the brightness is nearest to t / (T - 1)."""

    calls = 0  # of all instances
    images_at_once = 1

    def __init__(self, cfg):
        super().__init__()
        self.sem_seg_head = _weights()
        self.class_names = ("dark", "light")
        self.labels_only = False

    def set_vocabulary(self, names):
        self.class_names = tuple(names)

    def forward(self, inputs):
        type(self).calls += 1
        assert self.labels_only
        return [{"labels": self.labels(**one)} for one in inputs]

    def labels(self, image, height, width, **_):
        assert image.shape[0] == 3
        grey = image.float().mean(0)[None, None] / 255
        grey = nn.functional.interpolate(grey, size=(height, width))[0]
        levels = torch.linspace(0, 1, len(self.class_names))
        return (grey - levels[:, None, None]).abs().argmin(0)


def _weights() -> nn.Module:
    """Named so that a checkpoint of them is known for one of CAT-Seg that holds CLIP."""
    clip = nn.ModuleDict({"visual": nn.ModuleDict({"conv1": nn.Linear(1, 1)})})
    parts = {"transformer": nn.Linear(1, 1), "clip_model": clip}
    return nn.ModuleDict({"predictor": nn.ModuleDict(parts)})


def write_config(folder: Path, more: str = "") -> Path:
    """Write a config of this model and its weights; `more` YAML follows."""
    model = BrightnessSegmenter(None)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    path = folder / "config.yaml"
    path.write_text(
        "MODEL:\n"
        "  META_ARCHITECTURE: BrightnessSegmenter\n"
        f"  WEIGHTS: {folder / 'model.pth'}\n"
        "INPUT:\n"
        "  FORMAT: RGB\n"
        "  MIN_SIZE_TEST: 32\n"
        f"{more}"
    )
    return path


def write_squares(folder: Path, count: int) -> Path:
    """Write images of grey squares, their labels partly wrong, and a config for them.

    The data set "squares" has the vocabulary SQUARES.
    """
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(count):
        truth = random.integers(0, 3, (4, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        image = (truth * 127).repeat(3).reshape(*truth.shape, 3)
        truth[: 4 * i] = 255 if i == 1 else (truth[: 4 * i] + 1) % 3
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(truth).save(folder / "labels" / f"{i}.png")
    (folder / "names.json").write_text(json.dumps(SQUARES))
    return write_config(
        folder,
        "DATALOADER:\n"
        "  NUM_WORKERS: 0\n"
        "DATASETS:\n"
        "  TEST: [squares]\n"
        "  FOLDERS:\n"
        f"    - {{NAME: squares, IMAGES: {folder / 'images'}, LABELS: {folder / 'labels'}, "
        f"CLASSES: {folder / 'names.json'}}}\n",
    )

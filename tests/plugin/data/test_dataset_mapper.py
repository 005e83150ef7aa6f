"""Training samples: augmentation, padding, and what makes an image bad."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from PIL import Image

from cat_seg.plugin.config import add_cat_seg_config
from cat_seg.plugin.data.color_jitter import ColorTransform, SSDColorJitter
from cat_seg.plugin.data.dataset_mapper import build_train_mapper

NAME = "mapper_test"


@pytest.fixture
def cfg() -> Iterator[CfgNode]:
    MetadataCatalog.get(NAME).set(stuff_classes=list("abcd"), ignore_label=255)
    cfg = get_cfg()
    add_cat_seg_config(cfg)
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.RANDOM_FLIP = "none"
    yield cfg
    MetadataCatalog.remove(NAME)


def entry(folder: Path, image: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    files = {
        "file_name": str(folder / "image.png"),
        "sem_seg_file_name": str(folder / f"labels.{'tif' if labels.itemsize > 1 else 'png'}"),
    }
    for path, array in zip(files.values(), (image, labels), strict=True):
        Image.fromarray(array).save(path)
    return files


def coded(height: int, width: int, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """An image of flat quarters and labels that tell the same: class k is the colour 60 k."""
    labels = np.zeros((height, width), dtype)
    labels[height // 2 :] += 2
    labels[:, width // 2 :] += 1
    return np.repeat(labels[..., None] * 60, 3, axis=2).astype(np.uint8), labels


def test_nothing_but_reading_and_padding(cfg: CfgNode, tmp_path: Path) -> None:
    image, labels = coded(40, 50)
    cfg.INPUT.SIZE_DIVISIBILITY = 32
    sample = build_train_mapper(cfg)(entry(tmp_path, image, labels))
    assert sample["image"].shape == (3, 64, 64) and sample["image"].dtype == torch.uint8
    assert sample["sem_seg"].shape == (64, 64) and sample["sem_seg"].dtype == torch.int64
    assert (sample["height"], sample["width"]) == (40, 50)
    assert np.array_equal(sample["image"][:, :40, :50].permute(1, 2, 0), image)
    assert np.array_equal(sample["sem_seg"][:40, :50], labels)
    padding = torch.ones(64, 64, dtype=torch.bool)
    padding[:40, :50] = False
    assert (sample["image"][:, padding] == 128).all()
    assert (sample["sem_seg"][padding] == 255).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_image_and_labels_stay_together(cfg: CfgNode, tmp_path: Path, dtype: type) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 48)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [24, 24]
    cfg.INPUT.SIZE_DIVISIBILITY = 24
    mapper = build_train_mapper(cfg)
    files = entry(tmp_path, *coded(80, 100, dtype))
    seen = set()
    for _ in range(20):
        sample = mapper(files)
        assert sample["image"].shape == (3, 24, 24) and sample["sem_seg"].shape == (24, 24)
        told = sample["sem_seg"].numpy() * 60
        agree = np.abs(sample["image"].numpy().astype(int) - told) < 2
        assert agree.mean() > 0.8  # all but the blended borders
        seen.add(sample["sem_seg"].numpy().tobytes())
    assert len(seen) > 10


def test_crops_keep_the_single_category_limit(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [32, 32]
    files = entry(tmp_path, *coded(96, 96))

    def largest_shares(limit: float) -> np.ndarray:
        cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = limit
        mapper = build_train_mapper(cfg)
        samples = [mapper(files)["sem_seg"].flatten() for _ in range(50)]
        return np.array([labels.bincount().max().item() / 32**2 for labels in samples])

    assert (largest_shares(0.75) > 0.75).mean() < 0.1 < (largest_shares(1.0) > 0.75).mean()


def test_colour_jitter_changes_colours_only(cfg: CfgNode, tmp_path: Path) -> None:
    image, labels = coded(40, 40)
    cfg.INPUT.COLOR_AUG_SSD = True
    mapper = build_train_mapper(cfg)
    files = entry(tmp_path, image, labels)
    samples = [mapper(files) for _ in range(10)]
    assert all(np.array_equal(sample["sem_seg"], labels) for sample in samples)
    assert len({sample["image"].numpy().tobytes() for sample in samples}) > 5


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("expected one label a pixel", coded(40, 41)[1]),
        ("label 4 is out of range", coded(40, 40)[1] + 1),
    ],
)
def test_labels_that_cannot_be_right(
    cfg: CfgNode, tmp_path: Path, problem: str, labels: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=rf"labels\.png.*{problem}"):
        build_train_mapper(cfg)(entry(tmp_path, coded(40, 40)[0], labels))


def test_pixels_of_no_class_get_the_ignore_label_of_the_loss(cfg: CfgNode, tmp_path: Path) -> None:
    """Whatever a data set marks them by: 459 in PC-459, 65535 in A-847."""
    image, labels = coded(40, 40)
    labels[0] = 255
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 65535
    sample = build_train_mapper(cfg)(entry(tmp_path, image, labels))
    assert (sample["sem_seg"][0] == 65535).all() and sample["sem_seg"][1:].max() == 3
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 2
    with pytest.raises(ValueError, match="IGNORE_VALUE is 2, but that is also the label of 'c'"):
        build_train_mapper(cfg)


def test_published_and_own_name_give_the_same_mapper(cfg: CfgNode) -> None:
    cfg.INPUT.DATASET_MAPPER_NAME = "semantic_segmentation"
    own = type(build_train_mapper(cfg))
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    assert type(build_train_mapper(cfg)) is own
    cfg.INPUT.DATASET_MAPPER_NAME = "coco_panoptic"
    with pytest.raises(ValueError, match="DATASET_MAPPER_NAME is 'coco_panoptic'; expected"):
        build_train_mapper(cfg)


class TestColorTransform:
    """Each change alone, against its definition."""

    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)

    def test_no_change(self) -> None:
        assert np.array_equal(ColorTransform().apply_image(self.image), self.image)

    def test_brightness(self) -> None:
        expected = np.clip(self.image.astype(int) + 20, 0, 255)
        assert np.array_equal(ColorTransform(brightness=20).apply_image(self.image), expected)

    def test_contrast(self) -> None:
        expected = np.clip(np.floor(self.image * 1.5), 0, 255)
        assert np.array_equal(ColorTransform(contrast=1.5).apply_image(self.image), expected)

    def test_hue_and_saturation(self) -> None:
        changed = ColorTransform(saturation=0.5, hue=-10).apply_image(self.image)
        hue, saturation, value = cv2.split(cv2.cvtColor(self.image, cv2.COLOR_RGB2HSV))
        expected = np.dstack([(hue.astype(int) - 10) % 180, saturation // 2, value])
        expected = cv2.cvtColor(expected.astype(np.uint8), cv2.COLOR_HSV2RGB)
        assert np.array_equal(changed, expected)

    def test_the_order_matters(self) -> None:
        first, last = (
            ColorTransform(contrast=1.5, saturation=1.5, contrast_first=order)
            for order in (True, False)
        )
        assert not np.array_equal(first.apply_image(self.image), last.apply_image(self.image))

    def test_draws_lie_within_the_published_ranges(self) -> None:
        drawn = [SSDColorJitter().get_transform(self.image) for _ in range(300)]
        assert 28 < max(abs(t.brightness) for t in drawn) <= 32
        for name in ("contrast", "saturation"):
            values = [getattr(t, name) for t in drawn]
            assert 0.5 <= min(values) < 0.6 and 1.4 < max(values) <= 1.5
            assert 0.4 < np.mean([value == 1.0 for value in values]) < 0.6
        assert {t.hue for t in drawn} == set(range(-18, 19))
        assert 0.4 < np.mean([t.contrast_first for t in drawn]) < 0.6

"""Evaluation reads what training, the library and detectron2 read."""

from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from PIL import Image

from cat_seg import images
from cat_seg.label_rules import LabelRule
from cat_seg.plugin.data.dataset_mapper import SemanticSegmentationMapper, TrainingLabels
from cat_seg.plugin.data.evaluation_mapper import EvaluationMapper


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TEST = 48
    cfg.INPUT.MAX_SIZE_TEST = 100
    return cfg


@pytest.mark.skipif("+cat_seg" in detectron2.__version__, reason="needs the real detectron2")
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "grey.jpg", "turned.jpg"])
def test_common_files_are_what_detectron2_reads(
    cfg: CfgNode, tmp_path: Path, name: str, image_format: str
) -> None:
    cfg.INPUT.FORMAT = image_format
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6 if name == "turned.jpg" else 1
    (picture.convert("L") if name == "grey.jpg" else picture).save(tmp_path / name, exif=exif)
    record = {"file_name": str(tmp_path / name), "sem_seg_file_name": "x", "image_id": 3}
    expected = DatasetMapper(cfg, False)(
        {key: value for key, value in record.items() if key != "sem_seg_file_name"}
    )
    sample = EvaluationMapper(cfg)(record)
    assert sample.keys() == expected.keys()
    assert torch.equal(sample.pop("image"), expected.pop("image"))
    assert sample == expected


def test_one_file_is_one_array_everywhere(cfg: CfgNode, tmp_path: Path) -> None:
    cfg.INPUT.MIN_SIZE_TEST = 0
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 1 << 16, (8, 9), dtype=np.uint16)).save(tmp_path / "16.png")
    Image.fromarray(rng.random((8, 9), dtype=np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(rng.integers(0, 256, (8, 9, 4), dtype=np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(tmp_path / "labels.png")
    train = SemanticSegmentationMapper(
        augmentations=[],
        image_format="RGB",
        ignore_label=255,
        datasets={"data": TrainingLabels(LabelRule(1))},
        size_divisibility=-1,
    )
    for name in ("16.png", "float.tif", "alpha.png"):
        record = {"file_name": str(tmp_path / name)}
        expected = images.read(tmp_path / name)
        assert expected.std() > 30  # neither white nor black
        labelled = record | {"sem_seg_file_name": str(tmp_path / "labels.png")}
        for sample in (EvaluationMapper(cfg)(record), train(labelled)):
            np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), expected)


@pytest.mark.parametrize("height", [None, 7])
def test_a_bad_image_is_stood_in_for(cfg: CfgNode, tmp_path: Path, height: int | None) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    if height:
        Image.new("RGB", (5, 5)).save(path)
    record = {"file_name": str(path)} | ({"height": height, "width": 5} if height else {})
    sample = EvaluationMapper(cfg)(record)
    assert sample["image"].shape == (3, 64, 64) and (sample["image"] == 128).all()
    assert "a.png" in sample["error"]

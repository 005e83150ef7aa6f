"""Benchmarks that a row is all they take: tiny copies in their own layouts, read and scored."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cat_seg.class_lists import class_names
from cat_seg.errors import CATSegError
from cat_seg.plugin.data.datasets.builtin import benchmark_splits
from cat_seg.plugin.data.datasets.rows import ROWS, register_rows
from cat_seg.plugin.evaluation import SegmentationEvaluator

# Name -> classes, image and label map below the root, and the values of the classes 0, 1, none.
LAYOUTS = {
    "cityscapes": (
        19,
        "cityscapes/leftImg8bit/val/town/a_leftImg8bit.png",
        "cityscapes/gtFine/val/town/a_gtFine_labelIds.png",
        np.array([[7, 8, 4]], np.uint8),
    ),
    "bdd100k": (
        19,
        "bdd100k/images/10k/val/a.jpg",
        "bdd100k/labels/sem_seg/masks/val/a.png",
        np.array([[0, 1, 255]], np.uint8),
    ),
    "mapillary": (
        65,
        "mapillary_vistas/validation/images/a.jpg",
        "mapillary_vistas/validation/v1.2/labels/a.png",
        np.array([[0, 1, 65]], np.uint8),
    ),
    "pascal_part_116": (
        116,
        "PascalPart116/images/val/a.jpg",
        "PascalPart116/annotations_detectron2_part/val/a.png",
        np.array([[0, 1, 255]], np.uint8),
    ),
    "ade_part_234": (
        234,
        "ADE20KPart234/images/validation/a.jpg",
        "ADE20KPart234/annotations_detectron2_part/validation/a.png",
        np.array([[0, 1, 65535]], np.uint16),
    ),
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    register_rows(tmp_path)
    yield tmp_path
    register_rows()


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_read_and_scored(root, name):
    classes, image, label, values = LAYOUTS[name]
    assert len(MetadataCatalog.get(name).vocabulary) == classes
    with pytest.raises(CATSegError, match=r"no folder .*below DETECTRON2_DATASETS"):
        DatasetCatalog.get(name)
    for path, array in ((image, np.zeros((1, 3, 3), np.uint8)), (label, values)):
        (root / path).parent.mkdir(parents=True)
        picture = Image.fromarray(array)
        if name == "mapillary" and path == label:  # its label maps have a palette
            picture.putpalette([0, 9, 200] * 66)
        picture.save(root / path)
    record = DatasetCatalog.get(name)[0]
    assert record["file_name"] == str(root / image)
    evaluator = SegmentationEvaluator(name, distributed=False)
    evaluator.reset()
    scores = torch.zeros(classes, 1, 3)
    scores[0, 0, 0] = scores[0, 0, 1] = 1  # one right, one wrong, one ignored
    evaluator.process([record], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(25)
    assert benchmark_splits(f"ade150,{name}")[1] == name


def test_names_of_parts_tell_their_objects():
    names = class_names("pascal_part_116")
    assert names[0] == "aeroplane's body" and names[-1] == "tvmonitor's screen"
    assert len(set(names)) == 116 and len({name.split("'s ")[0] for name in names}) == 16

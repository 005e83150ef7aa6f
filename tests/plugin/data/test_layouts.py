"""Scenes of the synthetic world in five foreign layouts give the figures of the plain one."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cat_seg.plugin.data.datasets.folders import FolderData
from cat_seg.plugin.data.imports import import_labels
from cat_seg.plugin.data.imports.palettes import voc_color
from cat_seg.plugin.evaluation import SegmentationEvaluator
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES

COUNT, SIDE = 3, 32
SCENES = [split_scene("val", i, seed=0, size=SIDE) for i in range(COUNT)]


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def plain(folder: Path) -> dict:
    for i, scene in enumerate(SCENES):
        save(folder / f"images/{i}.png", scene.image)
        save(folder / f"labels/{i}.png", scene.labels.astype(np.uint8))
    return {"LABELS": str(folder / "labels")}


def cityscapes(folder: Path) -> dict:
    """Sub-folders, suffixes, ids with gaps."""
    for i, scene in enumerate(SCENES):
        save(folder / f"images/town/{i}_leftImg8bit.png", scene.image)
        save(folder / f"gt/town/{i}_gtFine_labelIds.png", (2 * scene.labels + 1).astype(np.uint8))
        save(folder / f"gt/town/{i}_gtFine_color.png", scene.image)
    suffixes = {"IMAGE_SUFFIX": "_leftImg8bit", "LABEL_SUFFIX": "_gtFine_labelIds.png"}
    table = {2 * k + 1: name for k, name in enumerate(NAMES)}
    return {"LABELS": str(folder / "gt"), "MAP": table} | suffixes


def colours(folder: Path) -> dict:
    """RGB masks beside their images, a list of the split."""
    values = [voc_color(k) for k in range(len(NAMES))]
    table = np.array([[v >> 16, v >> 8 & 255, v & 255] for v in values], np.uint8)
    for i, scene in enumerate(SCENES):
        save(folder / f"images/{i}.png", scene.image)
        save(folder / f"images/{i}_mask.png", table[scene.labels])
    (folder / "val.txt").write_text("".join(f"{i}.png\n" for i in range(COUNT)))
    palette = [f"#{value:06x}" for value in values]
    options = {"LABEL_SUFFIX": "_mask.png", "PALETTE": palette, "LIST": str(folder / "val.txt")}
    return {"LABELS": str(folder / "images")} | options


def from_one(folder: Path) -> dict:
    """16 bit, labels from 1."""
    for i, scene in enumerate(SCENES):
        save(folder / f"images/{i}.png", scene.image)
        save(folder / f"labels/{i}.tif", (scene.labels + 1).astype(np.uint16))
    return {"LABELS": str(folder / "labels"), "OFFSET": 1}


def panoptic(folder: Path) -> dict:
    annotations = []
    for i, scene in enumerate(SCENES):
        save(folder / f"images/{i}.png", scene.image)
        ids = scene.labels.astype(np.int64) * 300 + 7
        save(folder / f"pan/{i}.png", np.stack([ids % 256, ids // 256, 0 * ids], -1).astype("u1"))
        segments = [
            {"id": int(k) * 300 + 7, "category_id": int(k)} for k in np.unique(scene.labels)
        ]
        annotations.append({"file_name": f"{i}.png", "segments_info": segments})
    categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
    content = {"annotations": annotations, "categories": categories}
    (folder / "pan.json").write_text(json.dumps(content))
    return import_labels("coco-panoptic", folder / "pan.json", folder / "out")[1]


def labelme(folder: Path) -> dict:
    for i, scene in enumerate(SCENES):
        save(folder / f"images/{i}.png", scene.image)
        shapes = []
        for k in np.unique(scene.labels):
            file = io.BytesIO()
            Image.fromarray(scene.labels == k).save(file, "PNG")
            mask = base64.b64encode(file.getvalue()).decode()
            box = [[0, 0], [SIDE - 1, SIDE - 1]]
            shapes.append({"label": NAMES[k], "points": box, "shape_type": "mask", "mask": mask})
        content = {"shapes": shapes, "imageHeight": SIDE, "imageWidth": SIDE}
        (folder / f"json/{i}.json").parent.mkdir(exist_ok=True)
        (folder / f"json/{i}.json").write_text(json.dumps(content))
    entry = import_labels("labelme", folder / "json", folder / "out")[1]
    found = json.loads(Path(entry["CLASSES"]).read_text())  # those that occur, sorted
    table = {k: NAMES.index(name) for k, name in enumerate(found)}
    return {"LABELS": entry["LABELS"], "MAP": table}


def figures(folder: Path, layout) -> tuple[list[int], dict[str, float]]:
    """The census of a layout, and the figures of predictions that are the same in all."""
    folder.mkdir()
    options = layout(folder) | {"CLASSES": list(NAMES)}
    entry = {"NAME": layout.__name__, "IMAGES": str(folder / "images")} | options
    data = FolderData.parse(entry)
    data.register()
    try:
        census = data.census()
        assert not census.problems and census.images == COUNT
        evaluator = SegmentationEvaluator(data.name, distributed=False)
        evaluator.reset()
        random = torch.Generator().manual_seed(0)
        for record in DatasetCatalog.get(data.name):
            scores = torch.rand(len(NAMES), SIDE, SIDE, generator=random)
            evaluator.process([record], [{"sem_seg": scores}])
        return census.pixels, evaluator.evaluate()["sem_seg"]
    finally:
        DatasetCatalog.remove(data.name)
        MetadataCatalog.remove(data.name)


@pytest.mark.parametrize("layout", [cityscapes, colours, from_one, panoptic, labelme])
def test_a_foreign_layout_gives_the_same_figures(layout, tmp_path, monkeypatch):
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    expected_pixels, expected = figures(tmp_path / "plain", plain)
    pixels, found = figures(tmp_path / "foreign", layout)
    assert pixels == expected_pixels and sum(pixels) == COUNT * SIDE * SIDE
    np.testing.assert_equal(found, expected)

"""Five foreign layouts of the same scenes: imported, checked, trained on, evaluated, reported."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from detectron2.utils.env import seed_all_rng
from PIL import Image
from pycocotools import mask as coco_mask

from cat_seg.cli import data, evaluate
from cat_seg.plugin.data.imports.palettes import voc_color
from cat_seg.synthetic.names import BACKGROUNDS
from tests.synthetic.test_training import train, write_backgrounds

CLASSES = sorted(BACKGROUNDS)  # as labelme's import sorts them
SCENES = 16
Maps = dict[str, np.ndarray]  # labels by name, 255 where there is none


def coco_panoptic(folder: Path, maps: Maps) -> list[str]:
    """Ids of three bytes, one segment a class."""
    (folder / "panoptic").mkdir()
    annotations = []
    for name, labels in maps.items():
        ids = np.where(labels == 255, 0, 70_000 + labels.astype(np.int64))
        colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
        Image.fromarray(colors).save(folder / f"panoptic/{name}.png")
        segments = [{"id": int(i), "category_id": int(i) - 69_900} for i in np.unique(ids[ids > 0])]
        annotations.append({"file_name": f"{name}.png", "segments_info": segments})
    categories = [{"id": 100 + k, "name": name} for k, name in enumerate(CLASSES)][::-1]
    content = {"annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return ["coco-panoptic", str(folder / "panoptic.json")]


def coco_instances(folder: Path, maps: Maps) -> list[str]:
    """Run-length codes, with holes and of several parts."""
    images, annotations = [], []
    for number, (name, labels) in enumerate(maps.items()):
        height, width = labels.shape
        images.append({"id": number, "file_name": f"{name}.png", "height": height, "width": width})
        for label in np.unique(labels[labels != 255]):
            code = coco_mask.encode(np.asfortranarray(labels == label, np.uint8))
            code["counts"] = code["counts"].decode()
            annotations.append(
                {"image_id": number, "category_id": int(label) + 1, "segmentation": code}
            )
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return ["coco-instances", str(folder / "instances.json")]


def labelme(folder: Path, maps: Maps) -> list[str]:
    """A bitmap a class, over the whole picture."""
    (folder / "json").mkdir()
    for name, labels in maps.items():
        shapes = []
        for label in np.unique(labels[labels != 255]):
            file = io.BytesIO()
            Image.fromarray(labels == label).save(file, "PNG")
            shapes.append(
                {
                    "label": CLASSES[label],
                    "shape_type": "mask",
                    "points": [[0, 0], [labels.shape[1] - 1, labels.shape[0] - 1]],
                    "mask": base64.b64encode(file.getvalue()).decode(),
                }
            )
        content = {"imagePath": f"{name}.png", "imageHeight": None, "shapes": shapes}
        Image.new("L", labels.shape[::-1]).save(folder / f"json/{name}.png")  # which tells the size
        (folder / f"json/{name}.json").write_text(json.dumps(content))
    return ["labelme", str(folder / "json")]


def voc(folder: Path, maps: Maps) -> list[str]:
    """Colours, without indices."""
    (folder / "masks").mkdir()
    colors = np.array([[c >> 16, c >> 8 & 255, c & 255] for c in map(voc_color, range(256))])
    for name, labels in maps.items():
        Image.fromarray(colors[labels].astype(np.uint8)).save(folder / f"masks/{name}.png")
    (folder / "words.txt").write_text("\n".join(CLASSES))
    return ["voc", str(folder / "masks"), "--classes", str(folder / "words.txt")]


def cityscapes(folder: Path, maps: Maps) -> dict[str, object]:
    """Folders of cities, suffixes, and ids with gaps, of which 0 is none: no import is needed."""
    for kind in ("leftImg8bit", "gtFine"):
        (folder / kind / "ulm").mkdir(parents=True)
    for name, labels in maps.items():
        ids = np.where(labels == 255, 0, 7 + 3 * labels.astype(np.int64)).astype(np.uint8)
        Image.fromarray(ids).save(folder / f"gtFine/ulm/{name}_gtFine_labelIds.png")
        picture = Image.open(folder.parent / f"plain/images/{name}.png")
        picture.save(folder / f"leftImg8bit/ulm/{name}_leftImg8bit.png")
    return {
        "IMAGES": str(folder / "leftImg8bit"),
        "LABELS": str(folder / "gtFine"),
        "CLASSES": CLASSES,
        "IMAGE_SUFFIX": "_leftImg8bit",
        "LABEL_SUFFIX": "_gtFine_labelIds",
        "MAP": {7 + 3 * k: name for k, name in enumerate(CLASSES)} | {0: "ignore"},
    }


LAYOUTS: tuple[Callable[[Path, Maps], list[str] | dict[str, object]], ...] = (
    *(coco_panoptic, coco_instances, labelme, voc, cityscapes),
)


@pytest.mark.slow
def test_five_layouts_give_the_figures_of_the_plain_one(tmp_path, capsys):
    plain = write_backgrounds(tmp_path / "plain", SCENES) | {"CLASSES": CLASSES}
    table = np.array([*(CLASSES.index(name) for name in BACKGROUNDS), *[255] * 248], np.uint8)
    maps = {}
    for path in sorted((tmp_path / "plain/labels").glob("*.png")):
        labels = table[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)]
        labels[:, :5] = 255  # a border of no class
        cv2.imwrite(str(path), labels)
        maps[path.stem] = labels
    assert set(np.unique(np.stack([*maps.values()]))) == {*range(len(CLASSES)), 255}

    foreign = []
    for layout in LAYOUTS:
        folder = tmp_path / layout.__name__
        folder.mkdir()
        source = layout(folder, maps)
        if isinstance(source, list):
            assert data.main(["import", *source, "--output", str(folder / "out")]) == 0
            (entry,) = yaml.safe_load(capsys.readouterr().out.splitlines()[-1])
            for name, labels in maps.items():
                written = cv2.imread(f"{entry['LABELS']}/{name}.png", cv2.IMREAD_UNCHANGED)
                np.testing.assert_array_equal(written, labels)
            source = entry | {"IMAGES": plain["IMAGES"]}
        foreign.append(source | {"NAME": layout.__name__})
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"DATASETS": {"FOLDERS": foreign}}))
    assert data.main(["check", "--config-file", str(tmp_path / "data.yaml")]) == 0
    pages = capsys.readouterr().out
    for name in CLASSES:  # as many pixels, and images, of each class in all
        rows = [line.split(name)[1] for line in pages.splitlines() if f"  {name}  " in line]
        assert len(rows) == len(LAYOUTS) and len(set(rows)) == 1, rows

    figures = []
    for kind, folders in (
        ("same", [plain | {"NAME": entry["NAME"]} for entry in foreign]),
        ("foreign", foreign),
    ):
        (tmp_path / kind).mkdir()
        names = tuple(str(entry["NAME"]) for entry in folders)
        seed_all_rng(0)
        trainer, (before, after) = train(tmp_path / kind, [plain, *folders], names, steps=40)
        cfg = trainer.cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = str(tmp_path / kind / "output/model_final.pth")
        (tmp_path / kind / "config.yaml").write_text(cfg.dump())
        output = tmp_path / kind / "results"
        evaluated = ["--config-file", str(tmp_path / kind / "config.yaml")]
        evaluated += ["--benchmark", ",".join(names), "--output", str(output)]
        assert evaluate.main(evaluated) == 0
        results = json.loads((output / "results.json").read_text())["datasets"]
        for result in results:
            del result["sha256"]  # of the files
        losses = [value for value, _ in trainer.storage.history("total_loss").values()]
        figures.append((losses, before, after, results))
        assert after > before + 10
        page = (output / "report.html").read_text()
        assert all(name in page for name in (*names, *CLASSES))
    assert figures[0] == figures[1]

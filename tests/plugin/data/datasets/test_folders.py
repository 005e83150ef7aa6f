"""Your own data, and every mistake that can be made with it."""

import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cat_seg.plugin.data.datasets import folders
from cat_seg.plugin.data.datasets.folders import register_folder, register_folders

NAME = "my_data"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three images (two formats) with label maps (two depths) and names."""
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for i, (suffix, depth) in enumerate([("jpg", "uint8"), ("png", "uint16"), ("JPG", "uint8")]):
        image, labels = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), i)
        labels[0] = 255
        Image.fromarray(image).save(tmp_path / f"images/{i}.{suffix}")
        Image.fromarray(labels.astype(depth)).save(tmp_path / f"labels/{i}.png")
    (tmp_path / "images/.DS_Store").touch()
    (tmp_path / "names.json").write_text(json.dumps(["wall ", "sofa, couch", "cat"]))
    yield tmp_path
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def register(data, **options) -> None:
    register_folder(NAME, data / "images", data / "labels", data / "names.json", **options)


def load(data) -> list[dict]:
    register(data)
    return DatasetCatalog.get(NAME)


def test_from_the_config(data):
    cfg = get_cfg()
    entry = {"NAME": NAME, "IMAGES": str(data / "images"), "LABELS": str(data / "labels")}
    cfg.DATASETS.FOLDERS = [entry | {"CLASSES": str(data / "names.json"), "IGNORE": 255}]
    cfg.merge_from_list(["DATASETS.FOLDERS", repr(cfg.DATASETS.FOLDERS)])  # as on a command line
    register_folders(cfg)
    register_folders(cfg)  # replaces
    assert len(DatasetCatalog.get(NAME)) == 3
    metadata = MetadataCatalog.get(NAME)
    assert metadata.stuff_classes == ["wall", "sofa, couch", "cat"]
    assert metadata.vocabulary == ["wall", "sofa, couch", "cat"]
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")

    cfg.DATASETS.FOLDERS = [entry]
    with pytest.raises(ValueError, match=r"expected entries \{NAME, IMAGES"):
        register_folders(cfg)


def spoil_size(data):
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(data / "labels/1.png")


def spoil_label(data):
    Image.fromarray(np.full((4, 6), 3, np.uint8)).save(data / "labels/1.png")


def spoil_channels(data):
    pixels = np.random.default_rng(0).integers(0, 3, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data / "labels/1.png")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_size, r"labels/1.png: 5 x 6 pixels, but its image .*images/1.png has 4 x 6"),
        (spoil_label, r"labels/1.png: label 3 is out of range; expected 0 to 2, or 255"),
        (spoil_channels, r"labels/1.png: a label map has one channel"),
        (lambda d: (d / "labels/1.png").write_bytes(b"x"), r"labels/1.png: cannot be read"),
        (lambda d: (d / "images/1.png").write_bytes(b"x"), r"images/1.png: cannot be read"),
        (lambda d: (d / "labels/1.png").unlink(), r"images/1.png: no label map in .*labels"),
        (lambda d: (d / "images/1.png").unlink(), r"labels/1.png: no image in .*images"),
        (lambda d: (d / "labels").rename(d / "other"), r"no folder .*labels"),
        (lambda d: (d / "names.json").write_text("[]"), r"names.json: .*is empty"),
    ],
)
def test_mistakes_are_named(data, spoil, said):
    spoil(data)
    with pytest.raises(ValueError, match=said):
        load(data)


def test_data_that_nothing_asks_for_may_be_missing(data):
    """A model's config names the data that it was trained on; segmenting a photo needs none."""
    for folder in ("images", "labels"):
        (data / folder).rename(data / f"no {folder}")
    register(data)
    assert MetadataCatalog.get(NAME).vocabulary == ["wall", "sofa, couch", "cat"]


def test_images_turned_by_their_exif_tag(data):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(np.zeros((6, 4, 3), np.uint8)).save(data / "images/0.jpg", exif=exif)
    assert len(load(data)) == 3


def test_ignored_label_is_no_class(data):
    with pytest.raises(ValueError, match="ignore label 1 is also the label of 'sofa, couch'"):
        register(data, ignore_label=1)


def test_published_names_are_taken(data):
    with pytest.raises(ValueError, match="choose another NAME"):
        register_folder(
            "voc_2012_test_sem_seg", data / "images", data / "labels", data / "names.json"
        )


def test_checked_once_until_a_file_changes(data, monkeypatch):
    load(data)
    monkeypatch.setattr(folders, "pair_problem", lambda *_, **__: "read again")
    load(data)
    spoil_label(data)
    with pytest.raises(ValueError, match="read again"):
        load(data)

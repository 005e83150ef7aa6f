"""Your own data, and every mistake that can be made with it."""

import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cat_seg.plugin.config import load_config
from cat_seg.plugin.data.datasets import census
from cat_seg.plugin.data.datasets.folders import FolderData, register_folders

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


def entry(data, **options) -> dict:
    folders = {"IMAGES": str(data / "images"), "LABELS": str(data / "labels")}
    return {"NAME": NAME, "CLASSES": str(data / "names.json")} | folders | options


def register(data, **options) -> None:
    FolderData.parse(entry(data, **options)).register()


def load(data, **options) -> list[dict]:
    register(data, **options)
    return DatasetCatalog.get(NAME)


def test_from_the_config(data):
    cfg = get_cfg()
    cfg.DATASETS.FOLDERS = [entry(data, IGNORE=255)]
    cfg.merge_from_list(["DATASETS.FOLDERS", repr(cfg.DATASETS.FOLDERS)])  # as on a command line
    register_folders(cfg)
    register_folders(cfg)  # replaces
    assert len(DatasetCatalog.get(NAME)) == 3
    metadata = MetadataCatalog.get(NAME)
    assert metadata.stuff_classes == ["wall", "sofa, couch", "cat"]
    assert metadata.vocabulary == ["wall", "sofa, couch", "cat"]
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")

    cfg.DATASETS.FOLDERS = [{"NAME": NAME}]
    with pytest.raises(ValueError, match=r"expected entries \{NAME, IMAGES"):
        register_folders(cfg)
    cfg.DATASETS.FOLDERS = [entry(data), entry(data)]
    with pytest.raises(ValueError, match="2 entries of NAME my_data"):
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
        (lambda d: (d / "labels/1.png").write_bytes(b"x"), r"labels/1.png is not an image"),
        (lambda d: (d / "images/1.png").write_bytes(b"x"), r"images/1.png is not an image"),
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


@pytest.mark.parametrize(
    "name", ["../../escaped", "a/b", "..", "/tmp", "a\\b", "a\x1b[2J", "x" * 101]
)
def test_a_name_is_no_path(data, name):
    with pytest.raises(ValueError, match=r"NAME is .* it is no path"):
        register(data, NAME=name)


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
        register(data, IGNORE=1)


def test_published_names_are_taken(data):
    with pytest.raises(ValueError, match="choose another NAME"):
        FolderData.parse(entry(data, NAME="voc_2012_test_sem_seg"))


def test_checked_once_until_a_file_changes(data, monkeypatch):
    load(data)

    def read_again(*_, **__):
        raise AssertionError

    monkeypatch.setattr(census, "_scan", read_again)
    load(data)
    spoil_label(data)
    with pytest.raises(AssertionError):
        load(data)


def test_options_of_an_entry(data):
    """Labels from 1, another suffix, a list, names in the YAML, sub-folders of one name."""
    for folder, suffix in (("images", "_rgb.png"), ("labels", "_id.png")):
        (data / folder / "sub").mkdir()
        for i in range(3):
            file = data / folder / "sub" / f"{i}{suffix}"
            Image.fromarray(np.full((4, 6), i, np.uint8)).save(file)
    (data / "val.txt").write_text("sub/1\nsub/2\n")
    options = {"IMAGE_SUFFIX": "_rgb", "LABEL_SUFFIX": "_id", "LIST": str(data / "val.txt")}
    options |= {"OFFSET": 1, "CLASSES": ["wall", ["sofa", "couch"]], "UNLABELLED": "nothing"}
    records = load(data, **options)
    files = [record["file_name"] for record in records]
    assert files == [str(data / f"images/sub/{i}_rgb.png") for i in (1, 2)]
    metadata = MetadataCatalog.get(NAME)
    assert metadata.vocabulary == ["wall", "sofa, couch"] and metadata.unlabelled == "nothing"
    assert metadata.label_rule.read(records[1]["sem_seg_file_name"]).max() == 1
    with pytest.raises(ValueError, match="UNLABELLED is 'maybe'"):
        register(data, UNLABELLED="maybe")


def test_what_smells_is_a_warning_at_every_start(data, caplog):
    for i in range(3):
        Image.fromarray(np.array([[0] * 6] * 4, np.uint8)).save(data / f"labels/{i}.png")
    for _ in range(2):
        caplog.clear()
        load(data)
        assert "one class alone occurs, 'wall'" in caplog.text
    spoil_label(data)
    with pytest.raises(ValueError, match=r"Maybe: a label equals the number of classes, 3"):
        load(data)


def test_jpeg_label_maps_are_refused(data):
    for i in range(3):
        (data / f"labels/{i}.png").unlink()
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(data / f"labels/{i}.jpg")
    with pytest.raises(ValueError, match=r"0.jpg: a label map as JPEG"):
        load(data)


def test_paths_may_start_at_the_yaml(data, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    (data / "my.yaml").write_text(
        f"DATASETS: {{FOLDERS: [{{NAME: {NAME}, IMAGES: images, LABELS: labels, "
        "CLASSES: names.json}]}"
    )
    load_config(data / "my.yaml", device="cpu")
    assert len(DatasetCatalog.get(NAME)) == 3

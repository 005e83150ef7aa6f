"""Preparation of each benchmark, on small trees in the true formats, irregular cases included."""

import dataclasses
import importlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from pycocotools import mask as rle_mask

from cat_seg.class_lists import label_ids
from tests.datasets.conftest import DATASETS


def save(path: Path, pixels, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    if mode == "P":
        image = image.convert("L")
        image.putpalette(list(range(256)) * 3)
    image.save(path)
    return path


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def grey(*values: int) -> np.ndarray:
    """One row of labels, two pixels high."""
    return np.array([values, values], dtype=np.uint8)


# ---- ADE20K-150 -------------------------------------------------------------------------------


@pytest.fixture
def ade150(root: Path) -> Path:
    source = root / "ADEChallengeData2016/annotations/validation"
    save(source / "plain.png", grey(0, 1, 150))
    save(source / "palette.png", grey(0, 1, 150), mode="P")
    save(source / "rgb.png", np.repeat(grey(0, 1, 150)[..., None], 3, axis=2))
    save(source / "deep.png", grey(0, 1, 150).astype(np.uint16))
    (source / ".DS_Store").write_bytes(b"x")
    (source / "._plain.png").write_bytes(b"x")
    (source / "notes.txt").write_text("x")
    return source


def test_ade150_values(script, root, ade150, capsys):
    assert script("prepare_ade20k_150") == 0
    output = root / "ADEChallengeData2016/annotations_detectron2/validation"
    assert sorted(p.name for p in output.iterdir()) == [
        "deep.png",
        "palette.png",
        "plain.png",
        "rgb.png",
    ]
    for path in output.iterdir():
        assert load(path).dtype == np.uint8
        np.testing.assert_array_equal(load(path), grey(255, 0, 149))
    said = capsys.readouterr().out
    assert "4 written, 0 kept, 3 skipped, 0 wrong" in said
    assert ".DS_Store, ._plain.png, notes.txt" in said


def test_wrong_masks_are_named_and_the_rest_is_done(script, root, ade150, capsys):
    save(ade150 / "colours.png", np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    save(ade150 / "beyond.png", grey(1, 151))
    (ade150 / "broken.png").write_bytes((ade150 / "plain.png").read_bytes()[:50])
    assert script("prepare_ade20k_150") == 1
    said = capsys.readouterr().out
    assert "4 written, 0 kept, 3 skipped, 3 wrong" in said
    assert "unknown label 151: beyond.png" in said
    assert "mode RGB" in said and "colours.png" in said and "broken.png" in said


def test_second_run_does_what_is_missing(script, root, ade150, capsys):
    script("prepare_ade20k_150")
    output = root / "ADEChallengeData2016/annotations_detectron2/validation"
    before = (output / "rgb.png").stat().st_mtime_ns
    (output / "plain.png").unlink()
    killed = output / ".cat-seg.0123456789abcdef.png"  # what a killed run leaves
    killed.write_bytes(b"half")
    capsys.readouterr()
    assert script("prepare_ade20k_150") == 0
    assert "1 written, 3 kept" in capsys.readouterr().out
    assert (output / "rgb.png").stat().st_mtime_ns == before
    (output / "plain.png").write_bytes(b"")
    save(ade150 / "rgb.png", grey(7, 7))  # corrected
    os.utime(ade150 / "rgb.png", (0, 0))  # as unpacking does
    assert script("prepare_ade20k_150") == 0
    assert "2 written, 2 kept" in capsys.readouterr().out
    np.testing.assert_array_equal(load(output / "rgb.png"), grey(6, 6))
    assert not killed.exists()
    np.testing.assert_array_equal(load(output / "plain.png"), grey(255, 0, 149))


def test_nothing_there(script, root, capsys):
    assert script("prepare", "all") == 1
    said = capsys.readouterr().out
    for name in (
        "annotations",
        "index_ade20k.pkl",
        "trainval_merged.json",
        "pascalcontext_val.txt",
    ):
        assert name in said
    assert "val.txt is missing; datasets/README.md says where to get it" in said


def test_a_source_that_cannot_be_read_is_told_and_the_rest_is_done(script, root, ade150, capsys):
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").mkdir(parents=True)
    assert script("prepare", "voc", "ade20k_150") == 1
    said = capsys.readouterr().out
    assert "voc: " in said and "val.txt" in said and "ADE-150: 4 written" in said


def test_failed_write_leaves_nothing(script, root, ade150, monkeypatch, capsys):
    def write_half(self, content):
        with open(self, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    assert script("prepare_ade20k_150") == 1
    assert not any((root / "ADEChallengeData2016/annotations_detectron2/validation").iterdir())
    assert "disk full" in capsys.readouterr().out


def test_interrupted_by_the_user(script, root, ade150, monkeypatch, capsys):
    original = os.replace

    def interrupt(part, path):
        if "plain" in Path(path).name:
            raise KeyboardInterrupt
        original(part, path)

    monkeypatch.setattr(os, "replace", interrupt)
    assert script("prepare_ade20k_150") == 130
    assert "goes on from here" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert script("prepare_ade20k_150") == 0
    output = root / "ADEChallengeData2016/annotations_detectron2/validation"
    assert len([p for p in output.iterdir() if not p.name.startswith(".")]) == 4


@pytest.mark.slow
def test_killed(script, root, ade150):
    labels = np.random.default_rng(0).integers(0, 151, (300, 300), dtype=np.uint8)
    for i in range(150):
        save(ade150 / f"{i}.png", labels)
    output = root / "ADEChallengeData2016/annotations_detectron2/validation"
    process = subprocess.Popen([sys.executable, str(DATASETS / "prepare_ade20k_150.py")])
    while process.poll() is None and not (output.is_dir() and any(output.glob("[0-9]*.png"))):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in output.glob("[!.]*.png"):
        load(path)  # whole
    assert script("prepare_ade20k_150") == 0
    assert len(list(output.glob("[!.]*.png"))) == 154
    assert not list(output.glob(".*"))


# ---- COCO-Stuff -------------------------------------------------------------------------------


def test_coco(script, root, capsys):
    source = root / "coco-stuff/annotations/val2017/000000000139.png"
    save(source, grey(0, 11, 12, 181, 182, 255))
    assert script("prepare_coco_stuff") == 0  # train2017 is not there, which is said
    output = root / "coco-stuff/annotations_detectron2/val2017/000000000139.png"
    np.testing.assert_array_equal(load(output), grey(0, 255, 11, 170, 255, 255))
    assert "this split is not there" in capsys.readouterr().out


def test_coco_without_masks(script, root):
    (root / "coco-stuff/annotations").mkdir(parents=True)
    assert script("prepare_coco_stuff") == 1


# ---- PASCAL VOC -------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", ["", "\n", "\r\n"])
def test_voc(script, root, line_end, capsys):
    base = root / "VOCdevkit/VOC2012"
    ids = ["2007_000033", "2007_000042", "2007_000061", "2007_000123"] if line_end else ["one"]
    save(base / f"SegmentationClassAug/{ids[0]}.png", grey(0, 1, 20, 255), mode="P")
    save(base / f"SegmentationClassAug/{ids[1 % len(ids)]}.png", grey(0, 1, 20, 255))
    if line_end:
        save(base / f"SegmentationClassAug/{ids[2]}.png", grey(0, 255))
    (base / "ImageSets/Segmentation").mkdir(parents=True)
    (base / "ImageSets/Segmentation/val.txt").write_bytes(line_end.join(ids).encode())

    assert script("prepare_voc") == (1 if line_end else 0)  # the mask of 2007_000123 is missing
    plain, with_background = (
        base / "annotations_detectron2/val",
        base / "annotations_detectron2_bg/val",
    )
    np.testing.assert_array_equal(load(plain / f"{ids[0]}.png"), grey(255, 0, 19, 255))
    np.testing.assert_array_equal(load(with_background / f"{ids[0]}.png"), grey(20, 0, 19, 255))
    if line_end:
        assert not (plain / f"{ids[2]}.png").exists()
        np.testing.assert_array_equal(load(with_background / f"{ids[2]}.png"), grey(20, 255))
        said = capsys.readouterr().out
        assert "2 written, 0 kept, 1 skipped, 1 wrong" in said and "2007_000123.png" in said


# ---- PASCAL Context ---------------------------------------------------------------------------


def segment(image_id: int, category: int, mask) -> dict:
    rle = rle_mask.encode(np.asfortranarray(np.array(mask, dtype=np.uint8)))
    return {
        "image_id": image_id,
        "category_id": category,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def test_pc59(script, root, capsys):
    first, last = label_ids("pc59")[0], label_ids("pc59")[-1]
    assert 1 not in label_ids("pc59")
    uncompressed = segment(7, last, [[0, 0]])
    uncompressed["segmentation"] = {"size": [1, 4], "counts": [3, 1]}
    content = {
        "images": [
            {"file_name": "2008_000007.jpg", "image_id": 7, "phase": "val"},
            {"file_name": "2008_000008.jpg", "image_id": 8, "phase": "val"},
            {"file_name": "2008_000009.jpg", "image_id": 9, "phase": "train"},
        ],
        "annos_segmentation": [
            segment(7, first, [[1, 1, 1, 0]]),
            segment(9, first, [[1, 1, 1, 0]]),
            segment(7, 1, [[0, 1, 0, 0]]),  # a class that is not among the 59 covers it
            uncompressed,
        ],
    }
    source = root / "VOCdevkit/VOC2010/trainval_merged.json"
    source.parent.mkdir(parents=True)
    source.write_text(json.dumps(content))
    assert script("prepare", "pascal_context_59") == 0
    output = source.parent / "annotations_detectron2/pc59_val"
    assert [p.name for p in output.iterdir()] == ["2008_000007.png"]
    np.testing.assert_array_equal(load(output / "2008_000007.png"), [[0, 255, 0, 58]])
    assert "image without annotation: 2008_000008.jpg" in capsys.readouterr().out

    source.write_text("{")
    assert script("prepare_pascal_context_59") == 1
    assert "is the download complete?" in capsys.readouterr().out


def test_pc459(script, root, capsys):
    base = root / "VOCdevkit/VOC2010"
    (base / "trainval").mkdir(parents=True)
    mats = {
        "plain": np.array([[1, 300, 459]], dtype=np.uint16),
        "floats": np.array([[1.0, 300.0, 459.0]]),
        "zero": np.array([[0, 300, 459]], dtype=np.uint16),
        "beyond": np.array([[1, 300, 460]], dtype=np.uint16),
        "fraction": np.array([[1.5, 300.0, 459.0]]),
    }
    for name, labels in mats.items():
        scipy.io.savemat(base / f"trainval/{name}.mat", {"LabelMap": labels})
    scipy.io.savemat(base / "trainval/other.mat", {"Labels": np.ones((1, 3))})
    (base / "pascalcontext_val.txt").write_bytes("\r\n".join([*mats, "other", "none"]).encode())
    assert script("prepare_pascal_context_459") == 1
    output = base / "annotations_detectron2/pc459_val"
    assert sorted(p.stem for p in output.iterdir()) == ["floats", "plain", "zero"]
    for name, first in (("plain", 0), ("floats", 0), ("zero", 459)):
        assert load(output / f"{name}.tif").dtype == np.uint16
        np.testing.assert_array_equal(load(output / f"{name}.tif"), [[first, 299, 458]])
    said = capsys.readouterr().out
    assert "3 written, 0 kept, 1 skipped, 3 wrong" in said
    for line in ("there is no .mat: none.mat", "is ignored: zero.mat", "unknown label 460: beyond"):
        assert line in said


# ---- ADE20K-847 -------------------------------------------------------------------------------


def save_ade(root: Path, name: str, ids: np.ndarray, mode: str = "RGB") -> tuple[str, str]:
    """An image with its codes; returns what the index says of it."""
    folder = "ADE20K_2021_17_01/images/ADE/validation/misc"
    shape = ids.shape if mode == "L" else (*ids.shape, 3)
    save(root / folder / f"{name}.jpg", np.full(shape, 100, np.uint8))
    codes = np.stack([ids // 256 * 10 + 3, ids % 256, ids * 0 + 9], axis=-1).astype(np.uint8)
    save(root / folder / f"{name}_seg.png", codes)
    return folder, f"{name}.jpg"


@pytest.mark.parametrize("protocol", [2, 4])
def test_ade847(script, root, protocol):
    known = label_ids("ade847")
    small = np.array([[known[0], known[846], 0]])
    large = np.full((700, 1001), known[1])
    large[:, 500:] = 1  # not among the 847
    assert 1 not in known and 0 not in known
    entries = [
        save_ade(root, "ADE_val_00000001", small),
        save_ade(root, "ADE_val_00000002", large),
        save_ade(root, "ADE_val_00000003", small, mode="L"),
        save_ade(root, "ADE_train_00000001", small),
    ]
    index = {
        "folder": [folder for folder, _ in entries],
        "filename": [name for _, name in entries],
        "objectPresence": np.zeros((3, 4), dtype=np.uint8),
        "objectnames": np.array(["wall", "door"], dtype=object),
        "count": np.float64(3),
    }
    base = root / "ADE20K_2021_17_01"
    (base / "index_ade20k.pkl").write_bytes(pickle.dumps(index, protocol=protocol))
    assert script("prepare_ade20k_full") == 0
    images, labels = (
        base / "images_detectron2/validation",
        base / "annotations_detectron2/validation",
    )
    names = [f"ADE_val_0000000{i}" for i in (1, 2, 3)]
    assert sorted(p.name for p in images.iterdir()) == [f"{name}.jpg" for name in names]
    assert sorted(p.name for p in labels.iterdir()) == [f"{name}.tif" for name in names]
    np.testing.assert_array_equal(load(labels / f"{names[0]}.tif"), [[0, 846, 65535]])
    assert load(labels / f"{names[0]}.tif").dtype == np.uint16
    assert load(images / f"{names[2]}.jpg").ndim == 2
    with Image.open(images / f"{names[0]}.jpg") as image:  # of Pillow's default quality
        default = io.BytesIO()
        Image.new("RGB", (8, 8)).save(default, "JPEG")
        assert image.quantization == Image.open(default).quantization
    resized = load(labels / f"{names[1]}.tif")
    assert resized.shape == (512, 732) == load(images / f"{names[1]}.jpg").shape[:2]  # 732.16
    assert set(np.unique(resized)) == {1, 65535}


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("was_executed"),)


def test_index_is_read_without_executing_it(script, root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    path = root / "ADE20K_2021_17_01/index_ade20k.pkl"
    path.parent.mkdir()
    path.write_bytes(pickle.dumps({"folder": ["a"], "filename": [Harmful()]}))
    assert script("prepare_ade20k_full") == 1
    assert "refused" in capsys.readouterr().out
    assert not (root / "was_executed").exists()


# ---- check.py ---------------------------------------------------------------------------------


def test_check(script, root, ade150, capsys):
    assert script("check") == 0  # nothing is there, nothing was asked for
    assert script("check", "voc") == 1
    capsys.readouterr()
    script("prepare_ade20k_150")
    images = root / "ADEChallengeData2016/images/validation"
    save(images / "plain.jpg", np.zeros((2, 3, 3), np.uint8))
    save(images / "rgb.jpg", np.zeros((3, 2, 3), np.uint8))
    save(images / "deep.jpg", np.zeros((2, 3, 3), np.uint8))
    save(root / "ADEChallengeData2016/annotations_detectron2/validation/deep.png", grey(1, 150, 3))
    capsys.readouterr()
    assert script("check", "ade20k_150_test_sem_seg") == 1
    said = capsys.readouterr().out
    assert "images: 3 in" in said and "labels: 4 of 2000 in" in said
    assert "no image" in said and "palette.jpg" in said
    assert "label 150 is out of range; expected 0 to 149, or 255 to ignore" in said
    assert "rgb.png: 2 x 3 pixels, but its image" in said
    assert "next: python datasets/prepare.py ade20k_150" in said
    assert "plain.png" not in said


def test_check_tells_a_root_that_is_not_there(script, root, capsys, monkeypatch):
    script("check")
    assert "no such folder" not in capsys.readouterr().out
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root / "misspelled"))
    script("check")
    assert f"{root / 'misspelled'}, but there is no such folder" in capsys.readouterr().out


def test_check_complete(script, root, ade150, capsys, monkeypatch):
    script("prepare_ade20k_150")
    for name in ("plain", "palette", "rgb", "deep"):
        path = root / f"ADEChallengeData2016/images/validation/{name}.jpg"
        save(path, np.zeros((2, 3, 3), np.uint8))
    monkeypatch.syspath_prepend(str(DATASETS))
    check = importlib.import_module("check")
    complete = [dataclasses.replace(s, size=4) for s in check.SPLITS if "150" in s.name]
    monkeypatch.setattr(check, "SPLITS", complete)
    assert script("check") == 0
    assert "complete and in order" in capsys.readouterr().out

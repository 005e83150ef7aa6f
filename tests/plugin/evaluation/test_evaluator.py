"""Evaluators through detectron2's loop, on small data sets with every kind of trouble."""

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as rle_mask

from cat_seg.errors import CATSegError
from cat_seg.label_maps import read_label_map, write_label_map
from cat_seg.plugin.data.evaluation_mapper import EvaluationMapper
from cat_seg.plugin.evaluation import BackgroundEvaluator, SegmentationEvaluator, build_evaluator
from cat_seg.plugin.evaluation.evaluator import _depth, _mark, _mark_of, _output_names

HEIGHT, WIDTH = 24, 40


class Dataset:
    """A registered data set, and a "model" that knows what to predict for each file."""

    def __init__(self, folder: Path, name: str, classes: int, count: int = 4, **metadata) -> None:
        self.name, self.folder = name, folder
        rng = np.random.default_rng(0)
        scored = metadata.pop("scored", classes)
        ignore = 65535 if scored > 255 else 255
        suffix, depth = (".tif", np.uint16) if scored > 255 else (".png", np.uint8)
        self.truth, self.predicted, self.records = {}, {}, []
        for i in range(count):
            image, label = folder / f"image{i}.jpg", folder / f"image{i}{suffix}"
            truth = rng.integers(0, scored, (HEIGHT, WIDTH))
            truth[:2] = ignore
            predicted = np.where(rng.random(truth.shape) < 0.5, truth, truth + 1) % classes
            Image.fromarray(np.full((HEIGHT, WIDTH, 3), i, np.uint8)).save(image)
            Image.fromarray(truth.astype(depth)).save(label)
            self.truth[str(image)], self.predicted[str(image)] = truth, predicted
            self.records.append({"file_name": str(image), "sem_seg_file_name": str(label)})
        DatasetCatalog.register(name, lambda: [dict(record) for record in self.records])
        defaults = {
            "stuff_classes": [f"class {i}" for i in range(scored)],
            "vocabulary": [f"class {i}" for i in range(classes)],
            "ignore_label": ignore,
            "evaluator_type": "sem_seg",
        }
        MetadataCatalog.get(name).set(**defaults | metadata)
        self.classes = classes

    def __call__(self, inputs):
        return [{"sem_seg": self.scores(image)} for image in inputs]

    def scores(self, image) -> torch.Tensor:
        predicted = torch.from_numpy(self.predicted[image["file_name"]])
        return torch.nn.functional.one_hot(predicted, self.classes).permute(2, 0, 1).float()

    def evaluate(self, evaluator=None, model=None, mapper=None):
        cfg = get_cfg()
        cfg.OUTPUT_DIR = str(self.folder / "output")
        cfg.INPUT.MIN_SIZE_TEST = HEIGHT
        evaluator = evaluator or build_evaluator(cfg, self.name)
        loader = build_detection_test_loader(
            self.records, mapper=mapper or EvaluationMapper(cfg), num_workers=0
        )
        return inference_on_dataset(model or self, loader, evaluator)["sem_seg"]

    @property
    def results(self) -> Path:
        return self.folder / "output/inference" / self.name


@pytest.fixture
def dataset(tmp_path):
    """Makes data sets, and forgets them afterwards."""
    made = []

    def make(classes: int, **options) -> Dataset:
        made.append(f"evaluator_test_{len(made)}")
        return Dataset(tmp_path, made[-1], classes, **options)

    yield make
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def pixel_accuracy(data: Dataset, files=None) -> float:
    valid = right = 0
    for file in files or data.truth:
        truth = data.truth[file]
        keep = truth != MetadataCatalog.get(data.name).ignore_label
        valid += keep.sum()
        right += (truth == data.predicted[file])[keep].sum()
    return 100 * right / valid


@pytest.mark.parametrize("classes", [5, 300])
def test_figures_and_files(dataset, classes):
    data = dataset(classes)
    scores = data.evaluate()
    assert scores["pACC"] == pytest.approx(pixel_accuracy(data))
    saved = json.loads((data.results / "results.json").read_text())
    assert saved["comparable"] and saved["images"] == 4 and saved["left_out"] == {}
    for key in ("mIoU", "mIoU_2021", "fwIoU", "mACC", "pACC"):
        assert saved[key] == scores[key]
    with open(data.results / "per_class.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == classes and rows[0]["class"] == "class 0"
    assert float(rows[0]["IoU"]) == scores["IoU-class 0"]
    for file, predicted in data.predicted.items():
        written = data.results / "labels" / f"{Path(file).stem}.png"
        np.testing.assert_array_equal(read_label_map(written), predicted)

    segments = json.loads((data.results / "sem_seg_predictions.json").read_text())
    for file, predicted in data.predicted.items():
        painted = np.full((HEIGHT, WIDTH), -1)
        for segment in segments:
            if segment["file_name"] == file:
                where = rle_mask.decode(segment["segmentation"]).astype(bool)
                painted[where] = segment["category_id"]
        np.testing.assert_array_equal(painted, predicted)


def test_labels_in_place_of_scores(dataset):
    data = dataset(5)
    expected = data.evaluate()

    def model(inputs):
        return [{"labels": data.scores(image).argmax(0).to(torch.int16)} for image in inputs]

    assert data.evaluate(model=model) == expected


def test_background_rule(dataset):
    data = dataset(9, scored=4, evaluator_type="sem_seg_background")
    for file, truth in data.truth.items():  # classes 0 to 2; 3 is background
        data.predicted[file] = np.where(truth == 3, 3 + np.arange(WIDTH) % 6, truth % 9)
    scores = data.evaluate()
    assert scores["mIoU"] == 100.0 and scores["IoU-class 3"] == 100.0
    written = read_label_map(data.results / "labels/image0.png")
    assert written.max() == 3
    evaluator = build_evaluator(get_cfg(), data.name, data.folder / "elsewhere")
    assert isinstance(evaluator, BackgroundEvaluator)


def test_unreadable_files_are_left_out_and_named(dataset, caplog):
    data = dataset(5)
    files = list(data.truth)
    content = Path(files[0]).read_bytes()
    Path(files[0]).write_bytes(content[: len(content) // 2])
    Path(files[1]).unlink()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(data.folder / "image2.png")
    with caplog.at_level(logging.WARNING, logger="cat_seg"):
        scores = data.evaluate()
    assert scores["pACC"] == pytest.approx(pixel_accuracy(data, files[3:]))
    saved = json.loads((data.results / "results.json").read_text())
    assert sorted(saved["left_out"]) == files[:3] and not saved["comparable"]
    assert saved["remark"] == "not comparable: 1 of 4 images (3 left out)"
    for file in files[:3]:
        assert f"{file} is left out" in caplog.text
    assert "not comparable" in caplog.text


def test_incomplete_split_is_not_comparable(dataset):
    data = dataset(5, num_images=1449)
    data.evaluate()
    saved = json.loads((data.results / "results.json").read_text())
    assert saved["remark"] == "not comparable: 4 of 1449 images"


def test_no_readable_image(dataset):
    data = dataset(5, count=1)
    Path(next(iter(data.truth))).unlink()
    with pytest.raises(ValueError, match="no image could be evaluated"):
        data.evaluate()


def test_wrong_number_of_classes(dataset):
    data = dataset(5)

    def model(inputs):
        return [{"sem_seg": torch.zeros(6, HEIGHT, WIDTH)}]

    with pytest.raises(ValueError, match=r"predicts 6 classes, but .* vocabulary of 5"):
        data.evaluate(model=model)


def test_unknown_dataset():
    with pytest.raises(ValueError, match="no_such_set"):
        build_evaluator(get_cfg(), "no_such_set")


def test_several_processes_give_the_numbers_of_one(dataset, monkeypatch):
    data = dataset(5, count=5)
    expected = data.evaluate()
    whole = {p.name: p.read_bytes() for p in data.results.glob("*.json")}
    parts = []
    for shard in (data.records[:3], data.records[3:]):
        part = SegmentationEvaluator(data.name, output_dir=data.results)
        part.reset()
        for image in shard:
            part.process([image], data([image]))
        parts.append(part)
    monkeypatch.setattr(comm, "all_gather", lambda _: [part._result for part in parts])
    assert parts[0].evaluate()["sem_seg"] == expected
    assert whole == {p.name: p.read_bytes() for p in data.results.glob("*.json")}
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert parts[1].evaluate() is None


def test_resumed_run_gives_the_numbers_of_a_whole_one(dataset):
    data = dataset(300)
    files = [record["file_name"] for record in data.records]

    def evaluator():
        return SegmentationEvaluator(data.name, output_dir=data.results)

    first = evaluator()
    assert [record["file_name"] for record in first.resume("run")] == files
    expected = data.evaluate(first)
    whole = {p.name: p.read_bytes() for p in data.results.glob("*.json")}
    for i in (1, 3):
        (data.results / f"labels/image{i}.png").unlink()
    second = evaluator()
    data.records = second.resume("run")
    assert [record["file_name"] for record in data.records] == [files[1], files[3]]
    assert data.evaluate(second) == expected
    assert whole == {p.name: p.read_bytes() for p in data.results.glob("*.json")}
    assert evaluator().resume("run") == []
    assert evaluator().resume("another run") == DatasetCatalog.get(data.name)
    assert not list((data.results / "labels").iterdir())


def evaluated(data) -> SegmentationEvaluator:
    """Evaluate as "run", and return another evaluator."""
    first = SegmentationEvaluator(data.name, output_dir=data.results)
    first.resume("run")
    data.evaluate(first)
    return SegmentationEvaluator(data.name, output_dir=data.results)


def change_image(data):
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 99, np.uint8)).save(data.folder / "image1.jpg")


def empty_label_map(data):
    (data.results / "labels/image1.png").write_bytes(b"")


def draw_into_label_map(data):
    path = data.results / "labels/image1.png"
    with Image.open(path) as image:
        inside = PngInfo()
        inside.add_itxt("cat_seg", image.text["cat_seg"])
        labels = np.array(image)
    labels[3, 3] ^= 1
    Image.fromarray(labels).save(path, pnginfo=inside)


def swap_label_maps(data):
    labels = data.results / "labels"
    (labels / "image1.png").write_bytes((labels / "image0.png").read_bytes())


@pytest.mark.parametrize(
    "change", [change_image, empty_label_map, draw_into_label_map, swap_label_maps]
)
def test_what_has_changed_since_is_predicted_again(dataset, change):
    data = dataset(5)
    second = evaluated(data)
    change(data)
    (again,) = second.resume("run")
    assert again["file_name"].endswith("image1.jpg")


def test_ground_truth_is_that_of_now(dataset):
    data = dataset(5)
    second = evaluated(data)
    truth = data.folder / "image1.png"
    Image.fromarray((np.array(Image.open(truth)) + 1) % 5).save(truth)
    before = json.loads((data.results / "results.json").read_text())
    assert second.resume("run") == []
    second.reset()
    second.evaluate()
    after = json.loads((data.results / "results.json").read_text())
    assert after["pACC"] != before["pACC"]
    assert after["sha256"]["data"] != before["sha256"]["data"]


def test_other_files_are_left_alone(dataset):
    data = dataset(5)
    second = evaluated(data)
    own = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8))
    own.save(data.results / "labels/mine.png")
    (data.results / "labels/notes.txt").write_text("mine")
    part = data.results / "labels/.cat-seg.0123456789abcdef.png"  # left by a kill
    part.touch()
    assert len(second.resume("another run")) == 4
    assert {p.name for p in (data.results / "labels").iterdir()} == {"mine.png", "notes.txt"}
    own.save(data.results / "labels/image1.png")
    for act in (lambda e: e.resume("run"), lambda e: e.reset()):
        with pytest.raises(CATSegError, match=r"image1.png is there, and no evaluation wrote it"):
            act(SegmentationEvaluator(data.name, output_dir=data.results))


def test_more_than_65536_classes_do_not_wrap_round(dataset):
    data = dataset(5)
    evaluator = SegmentationEvaluator(data.name, output_dir=data.results)
    assert [_depth(n) for n in (256, 257, 65536, 65537)] == [
        np.uint8,
        np.uint16,
        np.uint16,
        np.int32,
    ]
    labels = np.array([[65536, 0, 65535]], np.int32)
    path = evaluator.prediction_file(data.records[0]["file_name"]).with_suffix(".tif")
    write_label_map(path, labels, json.dumps(_mark("run", "0", labels)))
    np.testing.assert_array_equal(read_label_map(path), labels)
    assert _mark_of(path)[0] == _mark("run", "0", labels)


def test_mapper_keeps_detectron2s_output(dataset):
    data = dataset(5)
    cfg = get_cfg()
    mapped = EvaluationMapper(cfg)(data.records[0])
    assert mapped["image"].shape == (3, 800, 1333) and mapped["image"].dtype == torch.uint8
    assert (mapped["height"], mapped["width"]) == (HEIGHT, WIDTH) and "error" not in mapped


def test_images_of_one_stem_have_label_maps_of_their_own():
    names = _output_names(["/d/a/1.png", "/d/b/1.png", "/d/b/2.jpg", "/d/b/2.png"])
    assert list(names.values()) == ["a/1.png", "b/1.png", "b/2.jpg.png", "b/2.png.png"]
    assert _output_names(["photos/1.jpg"]) == {"photos/1.jpg": "1.png"}

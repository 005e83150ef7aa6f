"""The table of splits, the class lists, and what detectron2's catalogs are told."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cat_seg.class_lists import class_names, label_ids, published_results
from cat_seg.errors import CATSegError
from cat_seg.plugin.data.datasets.builtin import BENCHMARKS, SPLITS, benchmark_splits, load_split
from cat_seg.vocabulary import Vocabulary

# name -> (classes predicted, classes scored, ignored label), of the published protocol
PROTOCOL = {
    "coco_2017_train_stuff_all_sem_seg": (171, 171, 255),
    "coco_2017_test_stuff_all_sem_seg": (171, 171, 255),
    "ade20k_150_test_sem_seg": (150, 150, 255),
    "ade20k_full_sem_seg_freq_val_all": (847, 847, 65535),
    "voc_2012_test_sem_seg": (20, 20, 255),
    "voc_2012_test_background_sem_seg": (59, 21, 255),
    "context_59_test_sem_seg": (59, 59, 255),
    "context_459_test_sem_seg": (459, 459, 459),
}


def test_the_table_is_the_protocol():
    assert {split.name for split in SPLITS} == set(PROTOCOL)
    for name, (predicted, scored, ignored) in PROTOCOL.items():
        metadata = MetadataCatalog.get(name)
        assert len(metadata.vocabulary) == predicted
        assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == scored
        assert len(metadata.stuff_colors) == scored
        assert metadata.ignore_label == ignored
        assert name in DatasetCatalog.list()


def test_benchmarks_by_short_names():
    assert set(BENCHMARKS) == {"ade150", "ade847", "pc59", "pc459", "voc20", "voc20b", "coco"}
    assert BENCHMARKS["coco"] == "coco_2017_test_stuff_all_sem_seg"  # not the training split
    chosen = benchmark_splits("voc20b, ade150")
    assert chosen == ("voc_2012_test_background_sem_seg", "ade20k_150_test_sem_seg")
    with pytest.raises(CATSegError, match=r"'ade'.*expected one or several of .*ade847"):
        benchmark_splits("pc59,ade")


def test_names_for_people_are_stripped():
    metadata = MetadataCatalog.get("ade20k_150_test_sem_seg")
    assert "bed " in metadata.vocabulary and "bed" in metadata.stuff_classes


def test_background_follows_the_foreground():
    metadata = MetadataCatalog.get("voc_2012_test_background_sem_seg")
    assert metadata.evaluator_type == "sem_seg_background"
    assert metadata.stuff_classes == [*class_names("voc20"), "background"]
    assert metadata.vocabulary[:20] == class_names("voc20")


def test_label_ids_belong_to_the_names():
    for vocabulary in ("ade847", "coco", "pc59"):
        ids = label_ids(vocabulary)
        assert len(ids) == len(set(ids)) == len(class_names(vocabulary))


def test_published_results_name_registered_splits():
    for row in published_results():
        assert set(row["mIoU"]) == set(PROTOCOL) - {
            "coco_2017_train_stuff_all_sem_seg",
            "coco_2017_test_stuff_all_sem_seg",
        }


def test_records(tmp_path):
    split = next(split for split in SPLITS if split.name == "ade20k_150_test_sem_seg")
    with pytest.raises(ValueError) as error:
        load_split(split, tmp_path)
    for part in (str(tmp_path / split.images), "DETECTRON2_DATASETS", "prepare.py ade20k_150"):
        assert part in str(error.value)
    for folder in (split.images, split.labels):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"No \.png files in"):
        load_split(split, tmp_path)
    for name in ("b", "a", ".hidden"):
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / split.labels / f"{name}.png")
    for name in ("a", "unlabelled"):
        (tmp_path / split.images / f"{name}.jpg").touch()
    records = load_split(split, tmp_path)
    assert [Path(record["sem_seg_file_name"]).name for record in records] == ["a.png", "b.png"]
    # b.jpg is missing; reading it will say so, and the evaluator names it
    assert [Path(record["file_name"]).name for record in records] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"a": 1.5}', '["a", ""]', '["a", 3]', '["a", "a"]']
)
def test_bad_name_lists(tmp_path, content):
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"names\.json"):
        Vocabulary.read(path)
    with pytest.raises(ValueError, match="no such file"):
        Vocabulary.read(tmp_path / "none.json")

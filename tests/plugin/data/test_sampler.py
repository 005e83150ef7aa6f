"""Data sets mixed by weight."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from cat_seg.label_rules import NOTHING
from cat_seg.plugin.data import sampler
from cat_seg.plugin.data.dataset_mapper import build_train_mapper
from cat_seg.plugin.data.sampler import MixedSampler
from cat_seg.plugin.data.train_loader import build_train_loader
from cat_seg.plugin.data.vocabulary import training_vocabulary
from tests.plugin.engine.toy import NAME, register_toy_data, toy_config


def test_sets_are_drawn_by_weight_and_their_images_alike():
    drawn = Counter(islice(MixedSampler([2, 6], [3, 1], seed=0), 8000))
    assert set(drawn) == set(range(8))
    assert sum(drawn[i] for i in (0, 1)) == pytest.approx(6000, abs=200)
    assert abs(drawn[0] - drawn[1]) <= 1
    assert max(drawn[i] for i in range(2, 8)) - min(drawn[i] for i in range(2, 8)) <= 1


def test_the_order_depends_on_the_seed_alone_and_is_shared_by_ranks(monkeypatch):
    whole = [*islice(MixedSampler([4, 9], [1, 1], seed=3), 60)]
    assert whole == [*islice(MixedSampler([4, 9], [1, 1], seed=3), 60)]
    assert whole != [*islice(MixedSampler([4, 9], [1, 1], seed=4), 60)]
    monkeypatch.setattr(sampler.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(sampler.comm, "get_rank", lambda: 1)
    assert [*islice(MixedSampler([4, 9], [1, 1], seed=3), 30)] == whole[1::2]


@pytest.fixture
def two_sets(tmp_path):
    """The toy data set, and another one of the same images whose labels are called otherwise."""
    entries = register_toy_data(tmp_path)
    DatasetCatalog.register("other_toys", lambda: entries[:2])
    MetadataCatalog.get("other_toys").set(
        stuff_classes=["grey", "dark"], ignore_label=255, evaluator_type="sem_seg"
    )
    yield (NAME, "other_toys")
    DatasetCatalog.remove("other_toys")
    MetadataCatalog.remove("other_toys")


def test_each_sample_tells_the_classes_of_its_set(two_sets, tmp_path):
    opts = ["DATASETS.TRAIN", two_sets, "DATASETS.TRAIN_WEIGHTS", [1, 3.0]]
    loader = build_train_loader(toy_config(tmp_path, *opts))
    samples = [sample for batch in islice(loader, 40) for sample in batch]
    count = Counter(sample["dataset"] for sample in samples)
    assert sum(count.values()) == 80 and count["other_toys"] == pytest.approx(60, abs=12)
    names = training_vocabulary("", two_sets).names
    assert names == ["dark", "light", "grey"]
    expected = {NAME: [0, 1], "other_toys": [2, 0]}
    for sample in samples:
        assert sample["classes"].tolist() == expected[sample["dataset"]]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], ["a", 1.0]])
def test_impossible_weights_are_told(two_sets, tmp_path, weights):
    cfg = toy_config(tmp_path, "DATASETS.TRAIN", two_sets, "DATASETS.TRAIN_WEIGHTS", weights)
    with pytest.raises(ValueError, match="a positive number for each of the 2 data sets"):
        build_train_loader(cfg)


def test_ignored_pixels_may_teach_nothing(two_sets, tmp_path):
    MetadataCatalog.get("other_toys").set(unlabelled="nothing")
    mapper = build_train_mapper(toy_config(tmp_path, "DATASETS.TRAIN", two_sets))
    (record,) = DatasetCatalog.get("other_toys")[:1]
    labels = np.zeros((16, 16), np.uint8)
    labels[:8] = 255
    Image.fromarray(labels).save(record["sem_seg_file_name"])
    found = {
        name: set(mapper(record | {"dataset": name})["sem_seg"].unique().tolist())
        for name in two_sets
    }
    assert found == {NAME: {0, 255}, "other_toys": {0, NOTHING}}

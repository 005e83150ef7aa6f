"""Catalogs, reading, augmentation, samplers and loaders."""

from __future__ import annotations

import logging
from itertools import islice

import numpy as np
import pytest
import torch
from fvcore.transforms.transform import CropTransform, HFlipTransform
from PIL import Image

from tests.compat.implementations import IS_REAL, Implementation

needs_both = pytest.mark.skipif(not IS_REAL, reason="needs the real detectron2")


def both() -> tuple[Implementation, Implementation]:
    return Implementation("detectron2"), Implementation("stand_in")


def test_catalogs(d2):
    data = d2("data")
    data.DatasetCatalog.register("compat_one", lambda: [{"file_name": "a"}])
    try:
        assert data.DatasetCatalog.get("compat_one") == [{"file_name": "a"}]
        assert "compat_one" in data.DatasetCatalog.list()
        with pytest.raises(AssertionError, match="already registered"):
            data.DatasetCatalog.register("compat_one", list)
        assert data.get_detection_dataset_dicts(["compat_one"] * 2) == [{"file_name": "a"}] * 2
    finally:
        data.DatasetCatalog.remove("compat_one")
    with pytest.raises(KeyError, match="compat_one"):
        data.DatasetCatalog.get("compat_one")


def test_metadata_keeps_its_first_value(d2):
    catalog = d2("data").MetadataCatalog
    meta = catalog.get("compat_meta").set(stuff_classes=["a"], ignore_label=255)
    try:
        assert catalog.get("compat_meta") is meta and meta.name == "compat_meta"
        meta.ignore_label = 255
        with pytest.raises(AssertionError, match="different value"):
            meta.ignore_label = 0
        with pytest.raises(AttributeError, match="thing_classes"):
            _ = meta.thing_classes
        assert meta.get("thing_classes", 3) == 3
        assert meta.as_dict()["stuff_classes"] == ["a"]
    finally:
        catalog.remove("compat_meta")


def test_dataset_packages_register_themselves(d2, tmp_path):
    """As those of MESS do: at import, colours as an array, endings that are more than a suffix."""
    for name in ("images/a_rgb.png", "labels/a_gt.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    images, labels = str(tmp_path / "images"), str(tmp_path / "labels")
    data, load_sem_seg = d2("data"), d2("data.datasets").load_sem_seg
    colors = d2("utils.colormap").colormap(rgb=True)
    data.DatasetCatalog.register(
        "compat_mess", lambda x=images, y=labels: load_sem_seg(y, x, "_gt.png", "_rgb.png")
    )
    data.MetadataCatalog.get("compat_mess").set(
        image_root=images, evaluator_type="sem_seg", stuff_classes=("a",), stuff_colors=colors
    )
    try:
        (sample,) = data.get_detection_dataset_dicts("compat_mess")
        assert sample == {
            "file_name": f"{images}/a_rgb.png",
            "sem_seg_file_name": f"{labels}/a_gt.png",
        }
        assert data.MetadataCatalog.get("compat_mess").stuff_colors is colors
        assert colors.shape[1] == 3 and len(np.unique(colors, axis=0)) > 60
        assert 0 <= colors.min() and 200 < colors.max() <= 255
    finally:
        data.DatasetCatalog.remove("compat_mess")
        data.MetadataCatalog.remove("compat_mess")


def test_load_sem_seg_pairs_by_name(d2, tmp_path):
    for folder, names in {"images": "cab", "labels": "bc"}.items():
        (tmp_path / folder).mkdir()
        ending = "jpg" if folder == "images" else "png"
        for name in names:
            (tmp_path / folder / f"{name}.{ending}").touch()
    found = d2("data.datasets").load_sem_seg(str(tmp_path / "labels"), str(tmp_path / "images"))
    assert found == [
        {
            "file_name": str(tmp_path / "images" / f"{name}.jpg"),
            "sem_seg_file_name": str(tmp_path / "labels" / f"{name}.png"),
        }
        for name in "bc"
    ]


def test_image_of_another_size_is_an_error(d2):
    utils = d2("data.detection_utils")
    sample: dict = {}
    utils.check_image_size(sample, np.zeros((4, 6, 3)))
    assert sample == {"height": 4, "width": 6}
    with pytest.raises(utils.SizeMismatchError, match=r"x\.jpg"):
        utils.check_image_size({"width": 5, "height": 4, "file_name": "x.jpg"}, np.zeros((4, 6)))


def test_crop_with_one_class_is_drawn_again(d2):
    T = d2("data.transforms")
    labels = np.zeros((20, 20), dtype=np.uint8)
    labels[:, 18:] = 1
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", [8, 8], 0.9)
    count = 0
    for _ in range(20):
        both = T.AugInput(np.zeros((20, 20, 3), np.uint8), sem_seg=labels)
        crop(both)
        count += len(np.unique(both.sem_seg)) == 2
    assert count >= 10  # without the constraint: about 3


def test_augmentations_take_what_they_name(d2):
    T = d2("data.transforms")

    class Shift(T.Augmentation):
        def __init__(self, by=1):
            self.by = by

        def get_transform(self, image, sem_seg):
            assert sem_seg.shape == image.shape[:2]
            return CropTransform(self.by, 0, image.shape[1] - self.by, image.shape[0])

    class Mirror(T.Augmentation):
        def get_transform(self, picture):
            return HFlipTransform(picture.shape[1])

    image = np.random.rand(4, 6, 3).astype(np.float32)
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    both = T.AugInput(image, sem_seg=labels)
    transforms = T.AugmentationList([Shift(by=2), Mirror()])(both)
    np.testing.assert_array_equal(both.image, image[:, 2:][:, ::-1])
    np.testing.assert_array_equal(both.sem_seg, labels[:, 2:][:, ::-1])
    np.testing.assert_array_equal(transforms.apply_image(image), both.image)
    assert repr(Shift(by=2)) == "Shift(by=2)" and repr(Shift()) == "Shift()"


@needs_both
def test_augmentations_give_the_same(scenes):
    image = np.asarray(Image.open(scenes[0]["file_name"]))
    labels = np.asarray(Image.open(scenes[0]["sem_seg_file_name"]))
    outputs = []
    for d2 in both():
        T = d2("data.transforms")
        augmentations = [
            T.ResizeShortestEdge((20, 50)),
            T.ResizeShortestEdge([30, 35, 0], 45, "choice"),
            T.RandomCrop_CategoryAreaConstraint("absolute", [18, 18], 0.6, 255),
            T.RandomCrop_CategoryAreaConstraint("relative", [0.9, 0.9], 1.0),
            T.RandomCrop_CategoryAreaConstraint("absolute_range", [8, 20], 0.9, 255),
            T.RandomCrop_CategoryAreaConstraint("relative_range", [0.5, 0.7], 0.9, 255),
            T.RandomFlip(0.3, horizontal=False, vertical=True),
        ]
        np.random.seed(5)
        result = []
        for dtype in (np.uint8, np.float32) * 5:
            both_ = T.AugInput(image.astype(dtype), sem_seg=labels)
            T.AugmentationList(augmentations)(both_)
            result += [both_.image, both_.sem_seg]
        outputs.append(([str(a) for a in augmentations], result))
    assert outputs[0][0] == outputs[1][0]
    for theirs, ours in zip(outputs[0][1], outputs[1][1], strict=True):
        assert theirs.dtype == ours.dtype
        np.testing.assert_array_equal(theirs, ours)


def test_training_sampler_goes_on_and_shuffles_each_pass(d2):
    sampler = d2("data.samplers").TrainingSampler(5, seed=1)
    drawn = list(islice(sampler, 15))
    assert [sorted(drawn[i : i + 5]) for i in (0, 5, 10)] == [list(range(5))] * 3
    assert drawn == list(islice(sampler, 15)) and drawn[:5] != drawn[5:10]
    ordered = d2("data.samplers").TrainingSampler(3, shuffle=False, seed=1)
    assert list(islice(ordered, 5)) == [0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match="positive"):
        d2("data.samplers").TrainingSampler(0)


@pytest.mark.parametrize("world_size", [1, 3])
def test_samplers_share_among_processes(d2, monkeypatch, world_size):
    comm, samplers = d2("utils.comm"), d2("data.samplers")
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    parts, training = [], []
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        parts.append(list(samplers.InferenceSampler(8)))
        training.append(list(islice(samplers.TrainingSampler(7, seed=2), 4)))
    assert [i for part in parts for i in part] == list(range(8))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    generator = torch.Generator().manual_seed(2)
    stream = [i for _ in range(2) for i in torch.randperm(7, generator=generator).tolist()]
    for rank, drawn in enumerate(training):
        assert drawn == stream[rank::world_size][:4]


def test_test_loader_gives_each_sample_once(d2, register, scenes):
    name = register(d2)
    cfg = d2("config").get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    loader = d2("data").build_detection_test_loader(
        cfg, name, mapper=lambda sample: sample["file_name"]
    )
    assert len(loader) == 5
    assert list(loader) == [[sample["file_name"]] for sample in scenes]
    by_two = d2("data").build_detection_test_loader([1, 2, 3], mapper=None, batch_size=2)
    assert list(by_two) == [[1, 2], [3]]


def double(x):
    return 2 * x


def test_test_loader_loads_in_worker_processes(d2):
    loader = d2("data").build_detection_test_loader([*range(5)], mapper=double, num_workers=2)
    assert list(loader) == [[0], [2], [4], [6], [8]]


@needs_both
def test_mappers_log_the_same(caplog, monkeypatch):
    logs = []
    for d2 in both():
        T = d2("data.transforms")
        monkeypatch.setattr(logging.getLogger(d2.name), "propagate", True)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger=d2.name):
            mapper = d2("data").DatasetMapper(
                True, augmentations=[T.RandomFlip(0.2)], image_format="RGB"
            )
        settings = (mapper.is_train, mapper.image_format, str(mapper.augmentations))
        logs.append(([record.getMessage() for record in caplog.records], settings))
    assert logs[0] == logs[1] and len(logs[0][0]) == 1


@needs_both
def test_augmentations_of_testing_are_the_same():
    made = [
        d2("data.detection_utils").build_augmentation(d2("config").get_cfg(), False)
        for d2 in both()
    ]
    assert str(made[0]) == str(made[1])

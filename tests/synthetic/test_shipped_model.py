"""The model that ships: its figures must not drop, and it needs nothing but its own files."""

import numpy as np
import pytest
import torch

from cat_seg import CATSeg
from cat_seg.resources import project_file
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES, SEEN_NAMES
from cat_seg.synthetic.world import draw_scene
from cat_seg.trust.weights import read_weights

SCENES = 20


@pytest.fixture(scope="module")
def model():
    return CATSeg.from_pretrained("synthetic", device="cpu")


def test_the_shipped_weights_are_small_and_half_precision():
    path = project_file("cat_seg/models/synthetic/model.safetensors")
    assert path.stat().st_size <= 16e6
    weights = read_weights(path)
    assert all(t.dtype == torch.float16 for t in weights.values() if t.is_floating_point())


@pytest.mark.slow
def test_figures_of_the_shipped_model_do_not_drop(model):
    vocabulary = model.vocabulary(NAMES)
    confusion = np.zeros((len(NAMES), len(NAMES)), np.int64)
    for index in range(SCENES):
        scene = split_scene("val", index, seed=0)
        answer = model.predict(scene.image, vocabulary, threshold=0).labels.astype(np.int64)
        pairs = scene.labels.astype(np.int64) * len(NAMES) + answer
        confusion += np.bincount(pairs.ravel(), minlength=confusion.size).reshape(confusion.shape)
    truth, right = confusion.sum(1), confusion.diagonal()
    iou = 100 * right / np.maximum(truth + confusion.sum(0) - right, 1)
    seen, held_out = slice(0, len(SEEN_NAMES)), slice(len(SEEN_NAMES), None)
    reached = {
        "pixels": 100 * right.sum() / truth.sum(),
        "seen": iou[seen][truth[seen] > 0].mean(),
        "held_out": iou[held_out][truth[held_out] > 0].mean(),
    }
    assert reached["pixels"] >= 90
    assert reached["seen"] >= 56
    assert reached["held_out"] >= 62


@pytest.mark.parametrize(
    ("name", "words"),
    [("red plain circle", "red object"), ("blue plain cross", "cross")],
)
def test_looser_words_find_the_thing_too(model, name, words):
    scene = draw_scene(np.random.default_rng(1), 128, [name], ["snow"], radius=(30, 34))
    found = model.predict(scene.image, [words, "snow"], threshold=0).labels == 0
    inside = scene.labels == NAMES.index(name)
    assert (found & inside).sum() / (found | inside).sum() > 0.7

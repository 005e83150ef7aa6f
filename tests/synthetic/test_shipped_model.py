"""The model that ships: its figures must not drop, and it needs nothing but its own files."""

import numpy as np
import pytest
import torch

from cat_seg import CATSeg
from cat_seg.resources import project_file
from cat_seg.synthetic.evaluate import evaluate, evaluate_words
from cat_seg.synthetic.names import NAMES
from cat_seg.synthetic.world import draw_scene
from cat_seg.trust.weights import read_weights

SCENES, SEED = 20, 77


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
    """On scenes of a seed that was never looked at while training was tuned."""
    found = evaluate(model, scenes=SCENES, seed=SEED)
    assert found["all"]["pixels"] >= 92
    assert found["all"]["seen"] >= 68
    assert found["all"]["held_out"] >= 70
    assert found["clear"]["seen"] >= 69
    words = evaluate_words(model, scenes=5, seed=SEED)
    assert min(words["colour"], words["pattern"], words["colour and shape"], words["shape"]) >= 60


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("red plain circle", "red object"),
        ("blue plain cross", "cross"),
        ("red plain star", "a crimson star"),
        ("green striped circle", "something striped"),
        ("yellow plain circle", "golden disc"),
    ],
)
def test_looser_words_find_the_thing_too(model, name, words):
    scene = draw_scene(np.random.default_rng(1), 128, [name], ["snow"], radius=(30, 34))
    found = model.predict(scene.image, [words, "snow"], threshold=0).labels == 0
    inside = scene.labels == NAMES.index(name)
    assert (found & inside).sum() / (found | inside).sum() > 0.7

"""The threshold of "none of these": chosen as stated, and right for the model that ships."""

import numpy as np
import pytest
import torch

from cat_seg import CATSeg
from cat_seg.synthetic.calibrate import Reliability, calibrate, measure, reliability
from cat_seg.synthetic.dataset import split_scene


@pytest.fixture(scope="module")
def model() -> CATSeg:
    return CATSeg.from_pretrained("synthetic", device="cpu")


def test_the_threshold_keeps_the_share_that_is_asked_for(model: CATSeg):
    loose, strict = (calibrate(model, scenes=4, keep=share) for share in (0.99, 0.9))
    assert loose.threshold < strict.threshold
    assert loose.right_kept >= 0.99 and 0.9 <= strict.right_kept < loose.right_kept
    assert strict.absent_refused > loose.absent_refused


@pytest.mark.slow
def test_the_shipped_threshold_is_the_calibrated_one(model: CATSeg):
    told = model.card["none_of_these"]
    assert model.threshold == told["threshold"]
    assert told["right_kept"] >= 0.95 and told["absent_refused"] >= 0.85
    assert model.card["calibration_error"] <= 0.05
    found = calibrate(model, scenes=20)
    assert found.threshold == pytest.approx(model.threshold, abs=0.1)


@pytest.mark.parametrize("others", [0, 12])
def test_short_lists_keep_what_is_right_and_refuse_what_is_absent(model: CATSeg, others: int):
    found = measure(model, others, scenes=6)
    assert found.threshold == model.threshold
    assert found.right_kept >= 0.85 and found.absent_refused >= 0.85


def test_a_picture_without_the_words_is_told(model: CATSeg):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    result = model.predict(noise, ["a cat", "a cup of tea"])
    assert (result.labels == -1).mean() > 0.95
    assert any("None of the words" in note for note in result.notes)


def test_the_expected_calibration_error_is_its_formula():
    scores = np.array([0.05, 0.15, 0.9, 0.9, 0.9, 0.9])
    right = np.array([False, True, True, True, True, False])
    found = Reliability.of(scores, right, bins=10)
    assert found.share == pytest.approx([1 / 6, 1 / 6, 0, 0, 0, 0, 0, 0, 0, 4 / 6])
    assert found.right[[0, 1, 9]] == pytest.approx([0, 1, 0.75]) and np.isnan(found.right[5])
    assert found.error == pytest.approx((0.05 + 0.85 + 4 * 0.15) / 6)


def test_fitted_scores_are_nearer_to_the_share_that_is_right_and_change_no_label():
    model = CATSeg.from_pretrained("synthetic", device="cpu")
    head = model.predictor.transformer.head
    with torch.no_grad():  # a model that is never sure
        head.weight.mul_(0.3)
        head.bias.mul_(0.3)
    scene = split_scene("val", 0, seed=5)
    labels = model.predict(scene.image, threshold=0).labels
    before = reliability(model, scenes=5).error
    calibrate(model, scenes=5, fit=True)
    assert reliability(model, scenes=5).error < before
    assert (model.predict(scene.image, threshold=0).labels == labels).mean() > 0.999

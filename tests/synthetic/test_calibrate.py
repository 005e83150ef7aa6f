"""The threshold of "none of these": chosen as stated, and right for the model that ships."""

import numpy as np
import pytest

from cat_seg import CATSeg
from cat_seg.synthetic.calibrate import calibrate, measure


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
    assert told["right_kept"] >= 0.95 and told["absent_refused"] >= 0.7
    found = calibrate(model, scenes=20)
    assert found.threshold == pytest.approx(model.threshold, abs=0.1)


@pytest.mark.parametrize("others", [0, 12])
def test_short_lists_keep_what_is_right_and_refuse_what_is_absent(model: CATSeg, others: int):
    found = measure(model, others, scenes=6)
    assert found.threshold < model.threshold
    assert found.right_kept >= 0.9 and found.absent_refused >= 0.7


def test_the_threshold_goes_with_the_number_of_words(model: CATSeg):
    assert model.threshold_of(80) == model.threshold_of(800) == model.threshold
    assert model.threshold_of(8) == pytest.approx(model.threshold / 10)


def test_a_picture_without_the_words_is_told(model: CATSeg):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    result = model.predict(noise, ["a cat", "a cup of tea"])
    assert (result.labels == -1).mean() > 0.95
    assert any("None of the words" in note for note in result.notes)

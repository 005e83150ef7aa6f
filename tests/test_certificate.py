"""Certificates: the bound over many splits, calibration, and what carries them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cat_seg import CATSeg, CATSegError
from cat_seg.certificate import at_most, calibrate, choose, settings
from cat_seg.cli.main import main
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES, wide_names

WORDS = list(NAMES[:12])
LOOSE = {"allow": 0.2, "share": 0.5, "confidence": 0.8}  # three pictures suffice


@pytest.fixture(scope="module")
def model() -> CATSeg:
    return CATSeg.from_pretrained("synthetic", device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [split_scene("val", index, seed=41).image for index in range(3)]


@pytest.mark.parametrize("rates", [[0.0, 0.02, 0.06, 0.2], [0.051] * 6, [0.0, 0.01, 0.02, 0.04]])
def test_the_bound_holds_in_as_many_splits_as_it_says(rates: list[float]):
    """The chosen setting breaks its promise in at most one of twenty calibrations."""
    rng = np.random.default_rng(0)
    share, confidence, splits = 0.05, 0.95, 1500
    broken, chosen = 0, []
    for _ in range(splits):
        # A picture that one setting changes much, a cheaper one changes, too.
        hard = rng.random(120)
        changed = [np.where(hard < rate, 0.3, 0.0) for rate in rates]
        best = choose(changed, allow=0.001, share=share, confidence=confidence)
        chosen.append(best)
        broken += best is not None and rates[best] > share
    spread = math.sqrt(0.05 * 0.95 / splits)
    assert broken / splits <= 1 - confidence + 3 * spread
    if rates[0] == 0:
        assert None not in chosen and max(chosen) > 0


def test_binomial_tail():
    assert at_most(0, 59, 0.05) < 0.05 < at_most(0, 58, 0.05)
    assert at_most(3, 3, 0.4) == pytest.approx(1)


def test_settings_become_cheaper_and_a_model_that_drops_classes_represents_none():
    ladder = settings(847)
    assert [k for k, _ in ladder] == sorted({k for k, _ in ladder}, reverse=True)
    assert all(0 < m <= 847 - k for k, m in ladder)
    assert all(k < 256 and m == 0 for k, m in settings(847, 256))


def test_calibrated_models_say_so_with_their_words_alone(
    model: CATSeg, pictures: list[np.ndarray], tmp_path: Path
):
    folder = model.save_pretrained(tmp_path / "model")
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    (tmp_path / "words.json").write_text(json.dumps(WORDS))
    options = ["--words-file", str(tmp_path / "words.json"), "--model", str(folder)]
    options += ["--allow", "20%", "--of-pictures", "50%", "--confidence", "0.8"]
    assert main(["calibrate", *map(str, tmp_path.glob("*.png")), *options]) == 0
    calibrated = CATSeg.from_pretrained(folder, device="cpu")
    found = calibrated.certificate
    assert found is not None and found.pictures == 3 and found.max_classes < len(WORDS)
    assert str(found) in (folder / "README.md").read_text()
    result = calibrated.predict(pictures[0], WORDS)
    assert str(found) in result.notes
    plan = found.plan(model.plan)
    np.testing.assert_array_equal(
        result.labels, model.predict(pictures[0], WORDS, plan=plan).labels
    )
    encoded = calibrated.encode(pictures[0])
    np.testing.assert_array_equal(calibrated.predict(encoded, WORDS).labels, result.labels)
    assert str(found) not in calibrated.predict(pictures[0], WORDS, plan=model.plan).notes
    assert str(found) not in calibrated.predict(pictures[0], WORDS[:3]).notes


def test_what_cannot_be_shown_is_refused(model: CATSeg, pictures: list[np.ndarray]):
    words = model.vocabulary(WORDS)
    with pytest.raises(CATSegError, match="give at least 59"):
        calibrate(model, pictures, words)
    with pytest.raises(CATSegError, match="No setting"):
        calibrate(model, pictures, model.vocabulary(WORDS[:3]), **LOOSE)
    with pytest.raises(CATSegError, match="allow is 2"):
        calibrate(model, pictures, words, allow=2)
    with pytest.raises(CATSegError, match="--output"):
        from cat_seg.cli import calibrate as command

        command.main(["photo.jpg", "--words", "cat, sofa"])


def test_wide_names_hold_the_world_first():
    names = wide_names(4000)
    assert names[: len(NAMES)] == NAMES and len(set(names)) == 4000
    assert wide_names(300) == names[:300]
    with pytest.raises(ValueError, match="there are"):
        wide_names(100_000)

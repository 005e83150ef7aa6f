"""Calibrates "none of these" for the model that ships: python -m cat_seg.synthetic.calibrate.

On validation scenes that no other figure uses, pixels get their label twice: among all names, and
among names from which half of those in the scene are left out. The threshold is the highest that
keeps a share of the right pixels of the first; how many pixels of left-out classes it refuses is
what can be said of the second. Then the same is measured with short lists of names, those in the
scene and a few others, for which the model lowers its threshold (`CATSeg.threshold_of`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cat_seg.model import CATSeg
from cat_seg.saved import save_description
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES
from cat_seg.vocabulary import Vocabulary

SEED = 11  # of scenes that neither training nor the published figures use
_SHORT_LISTS = (0, 4, 12, 30)  # names beside those of the scene


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does to pixels; shares in [0, 1]."""

    threshold: float
    right_kept: float  # of right pixels
    wrong_refused: float  # of pixels with a wrong label though their class is among the names
    absent_refused: float  # of pixels whose class is not among the names


def calibrate(model: CATSeg, *, scenes: int = 200, keep: float = 0.95) -> Calibration:
    """Choose the highest threshold that keeps a share of the right pixels, among all names."""
    right, wrong, absent, _ = _scores(model, scenes)
    return _shares(right, wrong, absent, int(100 * np.quantile(right, 1 - keep)) / 100)


def measure(model: CATSeg, others: int, *, scenes: int = 200) -> Calibration:
    """Measure the model's threshold on lists of the names in each scene and some others.

    Returns:
        the shares; the threshold is that of a list of mean length.
    """
    right, wrong, absent, length = _scores(model, scenes, others)
    return _shares(right, wrong, absent, round(model.threshold_of(length), 3))


def _shares(
    right: np.ndarray, wrong: np.ndarray, absent: np.ndarray, threshold: float
) -> Calibration:
    return Calibration(
        threshold,
        round(float((right >= threshold).mean()), 3),
        round(float((wrong < threshold).mean()), 3),
        round(float((absent < threshold).mean()), 3),
    )


def _scores(
    model: CATSeg, scenes: int, others: int = len(NAMES)
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return the best scores of right, wrong and left-out pixels, and the lists' mean length."""
    rng = np.random.default_rng(SEED)
    every = model.vocabulary(NAMES)
    right, wrong, absent, lengths = [], [], [], []
    for index in tqdm(range(scenes), desc="Calibrating", unit="scene", disable=None):
        scene = split_scene("val", index, seed=SEED)
        present = rng.permutation(np.unique(scene.labels).astype(int))
        names = [*present, *rng.permutation(np.setdiff1d(np.arange(len(NAMES)), present))[:others]]
        result = model.predict(scene.image, _part(every, names), threshold=0)
        is_right = np.array(names)[result.labels] == scene.labels
        right.append(result.scores[is_right])
        wrong.append(result.scores[~is_right])
        left_out = present[: max(1, len(present) // 2)]
        kept = [name for name in names if name not in left_out]
        scores = model.predict(scene.image, _part(every, kept), threshold=0).scores
        absent.append(scores[np.isin(scene.labels, left_out)])
        lengths.append(len(names))
    length = round(float(np.mean(lengths)))
    return np.concatenate(right), np.concatenate(wrong), np.concatenate(absent), length


def _part(vocabulary: Vocabulary, indices: Sequence[int]) -> Vocabulary:
    """Take some classes of a vocabulary, with their features."""
    features = vocabulary.features
    assert features is not None
    classes = tuple(vocabulary.classes[i] for i in indices)
    return replace(vocabulary, classes=classes, features=features[torch.tensor(indices)])


def main(arguments: list[str] | None = None) -> None:
    """Calibrate a saved model, and write its threshold into its config.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    folder = Path(__file__).parents[1] / "models" / "synthetic"
    parser.add_argument("folder", nargs="?", type=Path, default=folder, help="of a saved model")
    parser.add_argument("--scenes", type=int, default=200)
    options = parser.parse_args(arguments)
    model = CATSeg.from_pretrained(options.folder)
    found = calibrate(model, scenes=options.scenes)
    model.threshold = found.threshold
    model.card["none_of_these"] = asdict(found)
    save_description(model, options.folder)
    print(json.dumps(asdict(found)))
    for others in _SHORT_LISTS:
        measured = asdict(measure(model, others, scenes=options.scenes))
        print(json.dumps({"other names": others, **measured}))


if __name__ == "__main__":
    main()

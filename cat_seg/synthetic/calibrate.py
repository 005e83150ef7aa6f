"""Calibrates "none of these" for the model that ships: python -m cat_seg.synthetic.calibrate.

On validation scenes that no other figure uses, pixels get their label twice: among all names, and
among names from which half of those in the scene are left out. The threshold is the highest that
keeps a share of the right pixels of the first; how many pixels of left-out classes it refuses is
what can be said of the second.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cat_seg.model import CATSeg
from cat_seg.saved import save_description
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES

SEED = 11  # of scenes that neither training nor the published figures use


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does to pixels; shares in [0, 1]."""

    threshold: float
    right_kept: float  # of right pixels
    wrong_refused: float  # of pixels with a wrong label though their class is among the names
    absent_refused: float  # of pixels whose class is not among the names


def calibrate(model: CATSeg, *, scenes: int = 200, keep: float = 0.95) -> Calibration:
    """Choose the highest threshold that keeps a share of the right pixels."""
    rng = np.random.default_rng(SEED)
    every = model.vocabulary(NAMES)
    right, wrong, absent = [], [], []
    for index in tqdm(range(scenes), desc="Calibrating", unit="scene", disable=None):
        scene = split_scene("val", index, seed=SEED)
        result = model.predict(scene.image, every, threshold=0)
        is_right = result.labels == scene.labels
        right.append(result.scores[is_right])
        wrong.append(result.scores[~is_right])
        present = rng.permutation(np.unique(scene.labels))
        left_out = present[: max(1, len(present) // 2)]
        names = [name for i, name in enumerate(NAMES) if i not in left_out]
        scores = model.predict(scene.image, names, threshold=0).scores
        absent.append(scores[np.isin(scene.labels, left_out)])
    kept, missed, unknown = (np.concatenate(scores) for scores in (right, wrong, absent))
    threshold = int(100 * np.quantile(kept, 1 - keep)) / 100
    return Calibration(
        threshold,
        round(float((kept >= threshold).mean()), 3),
        round(float((missed < threshold).mean()), 3),
        round(float((unknown < threshold).mean()), 3),
    )


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


if __name__ == "__main__":
    main()

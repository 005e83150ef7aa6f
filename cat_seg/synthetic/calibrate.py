"""Calibrates "none of these" for the model that ships: python -m cat_seg.synthetic.calibrate.

On validation scenes that no other figure uses, pixels get their label twice: among all names, and
among names from which half of those in the scene are left out. First scores become chances of being
right: two numbers, a factor and an offset of every logit, are fitted to the first (Platt's scaling)
and become part of the last convolution, which changes no label. Then the threshold is the highest
that keeps a share of the right pixels of the first; how many pixels of left-out classes it refuses
is what can be said of the second. Then the same is measured with short lists of names, those in the
scene and a few others.

`--scores` changes the last convolution too; without it the threshold alone is chosen anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from cat_seg.model import CATSeg
from cat_seg.saved import save_description
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES
from cat_seg.synthetic.train_masks import save
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


@dataclass(frozen=True)
class Reliability:
    """How often labels are right, by their score.

    Attributes:
        scores, right, share: (bins,) of each bin of scores the mean score, the share of right
            pixels, and its share of all pixels; NaN, NaN, 0 where there is none.
    """

    scores: np.ndarray
    right: np.ndarray
    share: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, right: np.ndarray, bins: int = 15) -> Reliability:
        """Compare scores (N,) in 0..1 with whether the labels are right (N,), in equal bins."""
        at = np.minimum((scores * bins).astype(int), bins - 1)
        count = np.bincount(at, minlength=bins)
        with np.errstate(invalid="ignore"):
            sums = (np.bincount(at, w, minlength=bins) for w in (scores, right.astype(float)))
            means = [total / count for total in sums]
        return cls(means[0], means[1], count / len(scores))

    @property
    def error(self) -> float:
        """Expected calibration error: the mean difference of score and share right, in 0..1."""
        return float(np.nansum(self.share * np.abs(self.scores - self.right)))


def reliability(model: CATSeg, *, scenes: int = 100, seed: int = 12) -> Reliability:
    """Measure the model's scores among all names, on scenes that they were not fitted to."""
    right, wrong, _ = _scores(model, scenes, seed=seed)
    labels = np.concatenate([np.ones(len(right), bool), np.zeros(len(wrong), bool)])
    return Reliability.of(np.concatenate([right, wrong]), labels)


def calibrate(
    model: CATSeg, *, scenes: int = 200, keep: float = 0.95, fit: bool = False
) -> Calibration:
    """Choose the highest threshold that keeps a share of the right pixels, among all names.

    Args:
        fit: first make scores chances; changes the model's last convolution.
    """
    right, wrong, absent = _scores(model, scenes)
    if fit:
        factor, offset = _fit(right, wrong)
        head = model.predictor.transformer.head
        assert isinstance(head, nn.Conv2d) and head.bias is not None
        with torch.no_grad():
            head.weight.mul_(factor)
            head.bias.mul_(factor).add_(offset)
        right, wrong, absent = (
            torch.sigmoid(factor * torch.logit(torch.from_numpy(x), eps=1e-6) + offset).numpy()
            for x in (right, wrong, absent)
        )
    return _shares(right, wrong, absent, int(100 * np.quantile(right, 1 - keep)) / 100)


def _fit(right: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """Fit factor and offset of logits, so that scores of right and wrong pixels are chances."""
    scores = torch.from_numpy(np.concatenate([right, wrong])).double()
    truth = torch.cat([torch.ones(len(right)), torch.zeros(len(wrong))]).double()
    logits = torch.logit(scores, eps=1e-6)
    fitted = torch.tensor([1.0, 0.0], dtype=torch.double, requires_grad=True)
    solver = torch.optim.LBFGS([fitted], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = F.binary_cross_entropy_with_logits(fitted[0] * logits + fitted[1], truth)
        value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    factor, offset = fitted.tolist()
    return factor, offset


def measure(model: CATSeg, others: int, *, scenes: int = 200) -> Calibration:
    """Measure the model's threshold on lists of the names in each scene and some others.

    Returns:
        the shares.
    """
    right, wrong, absent = _scores(model, scenes, others)
    return _shares(right, wrong, absent, model.threshold)


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
    model: CATSeg, scenes: int, others: int = len(NAMES), seed: int = SEED
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best scores of right, wrong and left-out pixels."""
    rng = np.random.default_rng(seed)
    every = model.vocabulary(NAMES)
    right, wrong, absent = [], [], []
    for index in tqdm(range(scenes), desc="Calibrating", unit="scene", disable=None):
        scene = split_scene("val", index, seed=seed)
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
    return np.concatenate(right), np.concatenate(wrong), np.concatenate(absent)


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
    parser.add_argument("--scores", action="store_true", help="fit the scores too")
    options = parser.parse_args(arguments)
    model = CATSeg.from_pretrained(options.folder)
    found = calibrate(model, scenes=options.scenes, fit=options.scores)
    if options.scores:
        save(model, options.folder)
    model.threshold = found.threshold
    model.card["none_of_these"] = asdict(found)
    error = reliability(model, scenes=options.scenes // 2).error
    model.card["calibration_error"] = round(error, 4)
    print(json.dumps({"expected calibration error": round(error, 4)}))
    save_description(model, options.folder)
    print(json.dumps(asdict(found)))
    for others in _SHORT_LISTS:
        measured = asdict(measure(model, others, scenes=options.scenes))
        print(json.dumps({"other names": others, **measured}))


if __name__ == "__main__":
    main()

"""Figures of a small model: python -m cat_seg.synthetic.evaluate [FOLDER].

Mean IoU over validation scenes, all names in the vocabulary, twice: of every pixel, and without
those that nobody could name ("clear": `Scene.clear`). And with words left out: "red object",
"striped object", "red star", "star".

T names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cat_seg.model import CATSeg
from cat_seg.resources import resource
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import (
    BACKGROUNDS,
    HELD_OUT_OBJECTS,
    NAMES,
    SEEN_NAMES,
    SEEN_OBJECTS,
    phrase_groups,
)

PARTS = {
    "seen": SEEN_NAMES,
    "seen_object": SEEN_OBJECTS,
    "background": BACKGROUNDS,
    "held_out": HELD_OUT_OBJECTS,
}
LEFT_OUT = {"shape": 1, "colour": 2, "pattern": 3, "colour and shape": 4}  # of `phrase_groups`


def confusion(truth: np.ndarray, answer: np.ndarray, count: int) -> np.ndarray:
    """Count pixels by what they are (rows) and what they are taken for: (T, T)."""
    pairs = truth.astype(np.int64) * count + answer.astype(np.int64)
    return np.bincount(pairs.ravel(), minlength=count * count).reshape(count, count)


def iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class in percent, NaN of those that are in no scene: (T,)."""
    truth, right = counts.sum(1), counts.diagonal()
    union = truth + counts.sum(0) - right
    return np.where(truth > 0, 100 * right / np.maximum(union, 1), np.nan)


def evaluate(model: CATSeg, *, scenes: int = 300, seed: int = 0) -> dict[str, dict[str, float]]:
    """Evaluate all names on validation scenes.

    Returns:
        "all" and "clear", by whether every pixel counts; of each the mean IoU of `PARTS`, and the
        share of right pixels, in percent.
    """
    words = model.vocabulary(NAMES)
    every, clear = np.zeros((2, len(NAMES), len(NAMES)), np.int64)
    for index in tqdm(range(scenes), desc="Evaluating", unit="scene", disable=None):
        scene = split_scene("val", index, seed=seed)
        answer = model.predict(scene.image, words, threshold=0).labels
        every += confusion(scene.labels, answer, len(NAMES))
        clear += confusion(scene.labels[scene.clear], answer[scene.clear], len(NAMES))
    result = {}
    for key, counts in (("all", every), ("clear", clear)):
        of_each = iou(counts)
        result[key] = {
            part: _mean(of_each[[NAMES.index(name) for name in names]])
            for part, names in PARTS.items()
        }
        result[key]["pixels"] = round(100 * float(counts.diagonal().sum() / counts.sum()), 1)
    return result


def evaluate_words(model: CATSeg, *, scenes: int = 60, seed: int = 0) -> dict[str, float]:
    """Evaluate phrases that leave words out, with the backgrounds beside them.

    Returns:
        mean IoU over the phrases, in percent, of each kind of `LEFT_OUT`; pixels that nobody could
        name do not count.
    """
    kinds = {}
    for kind, number in LEFT_OUT.items():
        phrases = {name: frozenset([name]) for name in BACKGROUNDS} | phrase_groups()[number]
        table = np.zeros(len(NAMES), np.int64)
        for index, names in enumerate(phrases.values()):
            table[[NAMES.index(name) for name in names]] = index
        kinds[kind] = table, model.vocabulary(list(phrases))
    counts = {kind: np.zeros((len(v), len(v)), np.int64) for kind, (_, v) in kinds.items()}
    for index in tqdm(range(scenes), desc="Evaluating words", unit="scene", disable=None):
        scene = split_scene("val", index, seed=seed)
        encoded = model.encode(scene.image)
        for kind, (table, words) in kinds.items():
            answer = model.predict(encoded, words, threshold=0).labels
            truth = table[scene.labels]
            counts[kind] += confusion(truth[scene.clear], answer[scene.clear], len(words))
    return {kind: _mean(iou(each)[len(BACKGROUNDS) :]) for kind, each in counts.items()}


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return round(float(np.nanmean(values)), 1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    folder = resource("cat_seg/models/synthetic")
    parser.add_argument("folder", nargs="?", type=Path, default=folder, help="of a saved model")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the scenes")
    options = parser.parse_args(arguments)
    model = CATSeg.from_pretrained(options.folder)
    for part, figures in evaluate(model, scenes=options.scenes, seed=options.seed).items():
        print(json.dumps({part: figures}))
    words = evaluate_words(model, scenes=max(1, options.scenes // 5), seed=options.seed)
    print(json.dumps({"words left out": words}))


if __name__ == "__main__":
    main()

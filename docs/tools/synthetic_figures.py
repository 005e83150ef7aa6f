"""Measure on the synthetic world what the documentation tells, by the model that ships.

    python docs/tools/synthetic_figures.py training-free | refine

Prints rows of Markdown: mean IoU in percent over validation scenes, all 80 names in the vocabulary.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import numpy as np

from cat_seg import CATSeg
from cat_seg.modeling.training_free import VARIANTS
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES, SEEN_NAMES
from cat_seg.synthetic.world import Scene


def class_ious(segment: Callable[[np.ndarray], np.ndarray], scenes: Iterable[Scene]) -> np.ndarray:
    """Compute the IoU of each class over scenes, in percent.

    Args:
        segment: makes of an (H, W, 3) picture (H, W) labels, indices into `NAMES`.
        scenes: to be segmented.

    Returns:
        (80,), NaN of classes that are in no scene.
    """
    T = len(NAMES)
    confusion = np.zeros((T, T), np.int64)
    for scene in scenes:
        pairs = scene.labels.astype(np.int64) * T + segment(scene.image)
        confusion += np.bincount(pairs.ravel(), minlength=T * T).reshape(T, T)
    right, truth = confusion.diagonal(), confusion.sum(1)
    union = truth + confusion.sum(0) - right
    return np.where(truth > 0, 100 * right / np.maximum(union, 1), np.nan)


def row(name: str, ious: np.ndarray) -> str:
    """Format the means over seen and over held-out classes."""
    seen, held_out = np.nanmean(ious[: len(SEEN_NAMES)]), np.nanmean(ious[len(SEEN_NAMES) :])
    return f"| {name} | {seen:.1f} | {held_out:.1f} |"


def training_free(scenes: list[Scene]) -> None:
    """Compare the variants of the shipped model's CLIP with the model."""
    trained = CATSeg.from_pretrained(device="cpu")
    models = {f"`{name}`": trained.without_aggregator(name) for name in VARIANTS}
    for name, model in {**models, "CAT-Seg, trained": trained}.items():
        words = model.vocabulary(NAMES)
        segment = lambda picture: model.predict(picture, words, threshold=0).labels  # noqa: B023, E731
        print(row(name, class_ious(segment, scenes)), flush=True)


def refine(scenes: list[Scene]) -> None:
    """Compare the shipped model's masks before and after refinement."""
    model = CATSeg.from_pretrained(device="cpu")
    words = model.vocabulary(NAMES)
    for name in (None, "guided_filter"):
        segment = lambda picture: model.predict(picture, words, threshold=0, refine=name).labels  # noqa: B023, E731
        print(row(f"`{name}`" if name else "as it is", class_ious(segment, scenes)), flush=True)


FIGURES = {"training-free": training_free, "refine": refine}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("figures", choices=FIGURES)
    parser.add_argument("--scenes", type=int, default=100)
    args = parser.parse_args()
    FIGURES[args.figures]([split_scene("val", index, seed=0) for index in range(args.scenes)])


if __name__ == "__main__":
    main()

"""Measure what a few pictures teach: python -m docs.tools.learned_words [--true-names].

The 18 held-out objects of the synthetic world get made-up names (or keep their own), and are
learned all at once from one and from five scenes each, in a vocabulary of all 80 names. What is
printed is the mean IoU in percent over them ("held out") and over the other 62 names ("elsewhere").
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np

from cat_seg import CATSeg, Vocabulary
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES, SEEN_NAMES
from cat_seg.synthetic.world import Scene

MADE_UP = (
    "blick", "wug", "dax", "toma", "fep", "zorp", "kiki", "bouba", "glark", "snarf", "tulver",
    "quib", "mip", "vorl", "plim", "gazzer", "tukey", "smeeb",
)  # fmt: skip
_LEAST = 150  # pixels of a class in a scene that shows it


def model_without_the_answer() -> CATSeg:
    """The small model, which is not told by its own words how well the true names match."""
    model = CATSeg.from_pretrained("synthetic", "cpu")
    model.default_words = SEEN_NAMES
    return model


def made_up_names() -> list[str]:
    """`NAMES`, with made-up ones for the objects that are held out."""
    return [*SEEN_NAMES, *MADE_UP]


def examples(names: list[str], count: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Scenes that no figure uses: `count` for each held-out object, with its masks."""
    lacking = {index: count for index in range(len(SEEN_NAMES), len(NAMES))}
    found = []
    for scene in _scenes(11):
        pixels = np.bincount(scene.labels.ravel(), minlength=len(NAMES))
        masks = {}
        for index in [i for i in lacking if pixels[i] >= _LEAST]:
            masks[names[index]] = scene.labels == index
            lacking[index] -= 1
        lacking = {index: n for index, n in lacking.items() if n}
        if masks:
            found.append((scene.image, masks))
        if not lacking:
            break
    return found


def miou(model: CATSeg, vocabulary: Vocabulary, scenes: int, seed: int = 19) -> tuple[float, float]:
    """Mean IoU of the held-out objects and of the other classes, in percent."""
    confusion = np.zeros((len(NAMES), len(NAMES)), np.int64)
    for index in range(scenes):
        scene = split_scene("val", index, seed=seed)
        labels = model.predict(scene.image, vocabulary, threshold=0).labels.astype(np.int64)
        np.add.at(confusion, (scene.labels, labels), 1)
    true, right = confusion.sum(1), confusion.diagonal()
    iou = 100 * right / np.maximum(true + confusion.sum(0) - right, 1)
    seen, here = np.arange(len(NAMES)) < len(SEEN_NAMES), true > 0
    return float(iou[~seen & here].mean()), float(iou[seen & here].mean())


def _scenes(seed: int) -> Iterator[Scene]:
    index = 0
    while True:
        yield split_scene("val", index, seed=seed)
        index += 1


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--true-names", action="store_true", help="keep the objects' own names")
    parser.add_argument("--scenes", type=int, default=60, help="to evaluate on")
    parser.add_argument("--seed", type=int, default=19, help="of these scenes")
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures in the features")
    options = parser.parse_args(arguments)
    names = list(NAMES) if options.true_names else made_up_names()
    model = model_without_the_answer()

    def row(what: str, vocabulary: Vocabulary) -> None:
        held_out, elsewhere = miou(model, vocabulary, options.scenes, options.seed)
        print(f"{what:<24} held out {held_out:5.1f}  elsewhere {elsewhere:5.1f}", flush=True)

    row("words", model.vocabulary(names))
    for count in (1, 5):
        shown = examples(names, count)
        row(f"{count} a class", model.learn(names, shown, share=options.share))


if __name__ == "__main__":
    main()

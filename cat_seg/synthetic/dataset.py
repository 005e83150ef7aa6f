"""Write the synthetic world as a dataset: python -m cat_seg.synthetic.dataset --output DIR.

    DIR/names_seen.json           classes of segmentation training; a label is an index into it
    DIR/names.json                all classes: those of names_seen.json, then the held-out ones
    DIR/{train,val}/images/*.png
    DIR/{train,val}/labels/*.png  one byte a pixel
    DIR/{train,val}/captions.json file name -> sentence

`train` shows seen classes alone. In `val` half of the objects are held out, the rest are seen ones.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import cv2
import numpy as np

from cat_seg.errors import CATSegError
from cat_seg.synthetic.names import (
    BACKGROUNDS,
    HELD_OUT_OBJECTS,
    NAMES,
    SEEN_NAMES,
    SEEN_OBJECTS,
)
from cat_seg.synthetic.world import Scene, draw_scene

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
SIZE = 128
"""Side of a scene in pixels."""


def split_scene(split: str, index: int, *, seed: int, size: int = SIZE) -> Scene:
    """Draw scene `index` of a split; it depends on nothing but these arguments."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    held_out_share = 0.5 if split == "val" else 0.0
    objects = [
        str(rng.choice(HELD_OUT_OBJECTS if rng.random() < held_out_share else SEEN_OBJECTS))
        for _ in range(int(rng.integers(3, 7)))
    ]
    backgrounds = rng.choice(BACKGROUNDS, int(rng.integers(1, 4)), replace=False).tolist()
    return draw_scene(rng, size, objects, backgrounds)


def write_dataset(folder: Path, *, train: int, val: int, seed: int = 0) -> None:
    """Write `train` and `val` scenes below `folder`.

    Raises:
        CATSegError: if a picture cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, names in (("names_seen.json", SEEN_NAMES), ("names.json", NAMES)):
        (folder / file).write_text(json.dumps(names, indent=1) + "\n")
    for split, count in zip(SPLITS, (train, val), strict=True):
        captions = {}
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            scene = split_scene(split, index, seed=seed)
            file = f"{index:05d}.png"
            _write_png(folder / split / "images" / file, scene.image[..., ::-1])
            _write_png(folder / split / "labels" / file, scene.labels)
            captions[file] = scene.caption
        (folder / split / "captions.json").write_text(json.dumps(captions, indent=1) + "\n")
        logger.info("%s: %d scenes of %d x %d pixels", folder / split, count, SIZE, SIZE)


def _write_png(path: Path, picture: np.ndarray) -> None:
    if not cv2.imwrite(str(path), picture):
        raise CATSegError(f"{path}: the picture could not be written; is the disk full?")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=3000, help="scenes to train on")
    parser.add_argument("--val", type=int, default=300, help="scenes to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_dataset(options.output, train=options.train, val=options.val, seed=options.seed)


if __name__ == "__main__":
    main()

"""Draw the demo's pictures: python docs/tools/demo_pictures.py demo/images.

Each is cut out of a scene of the synthetic world and enlarged; `PICTURES` says how. The seeds were
chosen for what is to be seen, not for what the model finds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from cat_seg.synthetic.world import Scene, draw_scene


class Picture(NamedTuple):
    """What a picture shows.

    Attributes:
        seed: of everything that is left to chance.
        size: width and height in pixels of the world.
        scale: by which it is enlarged.
        objects, backgrounds: see `draw_scene`.
    """

    seed: int
    size: tuple[int, int]
    scale: int
    objects: tuple[str, ...]
    backgrounds: tuple[str, ...]


PICTURES = {
    "beach": Picture(
        10,
        (170, 128),
        4,
        ("red dotted cross", "pink plain triangle", "green striped circle", "blue plain star"),
        ("water", "sand", "sky"),
    ),
    "garden": Picture(
        0,
        (128, 170),
        4,
        ("cyan dotted star", "red plain triangle", "blue dotted circle", "yellow striped cross"),
        ("grass", "brick wall"),
    ),
    "harbour": Picture(
        10,
        (192, 128),
        4,
        ("blue plain circle", "yellow dotted triangle", "pink plain cross", "red striped star"),
        ("water", "sky"),
    ),
    "yard": Picture(
        4,
        (128, 128),
        4,
        ("yellow plain star", "cyan striped cross", "green dotted triangle", "red plain circle"),
        ("snow", "wood", "gravel"),
    ),
    "playground": Picture(
        4,
        (256, 192),
        4,
        (
            *("red plain circle", "blue striped star", "yellow plain cross", "green dotted star"),
            *("pink striped circle", "cyan plain triangle", "yellow dotted circle"),
            *("red striped triangle", "pink dotted cross"),
        ),
        ("sand", "grass", "wood"),
    ),
}


def draw(picture: Picture) -> tuple[np.ndarray, Scene]:
    """Draw a picture, (height, width, 3) uint8 RGB, and return the scene that it was cut out of."""
    width, height = picture.size
    side = max(width, height)
    rng = np.random.default_rng(picture.seed)
    scene = draw_scene(rng, side, picture.objects, picture.backgrounds, (18.0, 32.0), 1.0)
    y, x = (side - height) // 2, (side - width) // 2
    part = scene.image[y : y + height, x : x + width]
    size = (width * picture.scale, height * picture.scale)
    return cv2.resize(part, size, interpolation=cv2.INTER_CUBIC), scene


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="folder to write")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, picture in PICTURES.items():
        Image.fromarray(draw(picture)[0]).save(options.output / f"{name}.jpg", quality=92)


if __name__ == "__main__":
    main()

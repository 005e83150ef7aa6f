"""The one palette: a name has the same colour in every picture and vocabulary.

The colours are spread evenly in CIELAB (Glasbey et al., 2007, https://doi.org/10.1002/col.20327, in
its simplest form: each is the farthest from those before it).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import overload

import cv2
import numpy as np

_COUNT = 1024  # colours in the table
_FIRST = 128  # of them that a name hashes into: the ones that are told apart best
_TRIES = 12  # colours that a name may fall back on, its own first
_APART = 15.0  # CIELAB units that two colours of one picture should keep
# Where everybody expects a colour, another one would be read wrongly.
_EXPECTED = {
    **dict.fromkeys(("sky",), (110, 180, 240)),
    **dict.fromkeys(("tree", "forest", "bush"), (60, 140, 60)),
    **dict.fromkeys(("grass", "lawn", "meadow", "field"), (140, 200, 75)),
    **dict.fromkeys(("plant", "leaf"), (30, 165, 120)),
    **dict.fromkeys(("sea", "water", "ocean", "river", "lake"), (40, 105, 190)),
    **dict.fromkeys(("sand", "beach", "desert"), (225, 195, 120)),
    **dict.fromkeys(("earth", "soil", "ground", "mud", "dirt"), (150, 105, 65)),
    **dict.fromkeys(("road", "street", "asphalt"), (125, 115, 140)),
    **dict.fromkeys(("snow", "ice"), (200, 220, 235)),
    **dict.fromkeys(("fire", "flame"), (235, 90, 30)),
    **dict.fromkeys(("brick", "brick wall"), (175, 85, 65)),
    **dict.fromkeys(("wood",), (165, 115, 70)),
    **dict.fromkeys(("rock", "stone", "gravel"), (150, 145, 140)),
    **dict.fromkeys(("background",), (130, 130, 130)),
}
# A name that says a colour is drawn in a shade of it.
_HUES = {
    **dict.fromkeys(("red", "scarlet", "crimson"), (225, 60, 60)),
    "orange": (240, 145, 45),
    "yellow": (235, 210, 60),
    "green": (75, 185, 80),
    **dict.fromkeys(("cyan", "turquoise", "teal"), (60, 200, 205)),
    "blue": (70, 100, 225),
    **dict.fromkeys(("purple", "violet"), (145, 85, 205)),
    **dict.fromkeys(("pink", "magenta"), (235, 95, 175)),
    "brown": (150, 100, 60),
}
_SHADES = 32  # colours of the table that are a hue's


def name_colors(names: Sequence[str]) -> np.ndarray:
    """Return the colour of each name, unlike those of the others.

    A name alone always gets its own colour. Where two of them are hard to tell apart, one gives
    way, whatever the order of the names.

    Args:
        names: T names; capitals, spaces and synonyms after a comma do not count.

    Returns:
        (T, 3) uint8, RGB.
    """
    table, lab = _table()
    keys = [normalized(name) for name in names]
    often = {key for key, count in Counter(keys).items() if count > 1}  # bat, animal; bat, club
    keys = [name if key in often else key for name, key in zip(names, keys, strict=True)]
    colors: dict[str, np.ndarray] = {}
    gap = np.full(_COUNT, np.inf)  # distance of each colour of the table to the nearest one given
    taken = np.empty((0, 3))
    for key in sorted(set(keys), key=lambda key: (key not in _EXPECTED, _hash(key), key)):
        if key in _EXPECTED:
            color = np.array(_EXPECTED[key], np.uint8)
            color_lab = _to_lab(color[None])[0]
        if key not in _EXPECTED or (
            len(taken) and np.linalg.norm(taken - color_lab, axis=1).min() < _APART / 2
        ):
            choices = _choices(key)
            apart = choices[gap[choices] >= _APART]
            if not len(apart) and _hue(key):  # a close shade rather than another hue
                apart = choices[gap[choices] >= max(_APART / 2, gap[choices].max())]
            best = int(apart[0]) if len(apart) else int(gap.argmax())
            color, color_lab = table[best], lab[best]
        colors[key] = color
        taken = np.concatenate([taken, color_lab[None]])
        gap = np.minimum(gap, np.linalg.norm(lab - color_lab, axis=1))
    return np.array([colors[key] for key in keys], np.uint8).reshape(-1, 3)


@dataclass(frozen=True)
class NameColors(Sequence[tuple[int, int, int]]):
    """The colours of `name_colors`, (red, green, blue), computed when the first is asked for.

    Attributes:
        names: T names.
    """

    names: tuple[str, ...]

    @cached_property
    def _colors(self) -> list[tuple[int, int, int]]:
        return [(red, green, blue) for red, green, blue in name_colors(self.names).tolist()]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> tuple[int, int, int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, int, int]]: ...

    def __getitem__(self, index: int | slice) -> tuple[int, int, int] | list[tuple[int, int, int]]:
        return self._colors[index]


def normalized(name: str) -> str:
    """Return what of a name decides its colour: the first synonym, in small letters."""
    return " ".join(name.split(",")[0].casefold().split())


def is_light(color: Sequence[float] | np.ndarray) -> bool:
    """Tell whether dark text reads better than light text on a colour (WCAG's luminance)."""
    channels = np.asarray(color, np.float64) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return bool(linear @ [0.2126, 0.7152, 0.0722] > 0.26)


def _hue(key: str) -> tuple[int, int, int] | None:
    """Return the colour that a name says, as in "red striped star"."""
    return next((_HUES[word] for word in key.split() if word in _HUES), None)


def _choices(key: str) -> np.ndarray:
    """Return indices into the table that a name may get, its own first."""
    generator = np.random.default_rng(_hash(key))
    hue = _hue(key)
    if hue is None:
        return generator.permutation(_FIRST)[:_TRIES]
    distance = np.linalg.norm(_table()[1] - _to_lab(np.array([hue], np.uint8)), axis=1)
    return generator.permutation(np.argsort(distance)[:_SHADES])


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def _to_lab(colors: np.ndarray) -> np.ndarray:
    """(N, 3) uint8 RGB -> (N, 3) CIELAB."""
    return np.asarray(cv2.cvtColor(colors[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0])


@cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Return the colours, RGB (N, 3) uint8, and in CIELAB (N, 3)."""
    levels = np.linspace(0, 255, 24).astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _to_lab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    keep = (lab[:, 0] > 38) & (lab[:, 0] < 88) & (chroma > 28) & (chroma < 85)
    candidates, lab = candidates[keep], lab[keep]
    distance = np.linalg.norm(lab - [60, 0, 0], axis=1)
    chosen = []
    for _ in range(_COUNT):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return candidates[chosen], lab[chosen]

"""Procedural textures of the synthetic world's backgrounds.

Each background is painted a few times at `SHEET` pixels from a fixed seed, once a process; a scene
takes a random patch of a random sheet. That keeps drawing fast and the world the same for everyone.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from cat_seg.synthetic.names import BACKGROUNDS

SHEET = 384
_SHEETS = 6


def background(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Cut a random patch out of a background: (size, size, 3) float32 RGB, 0..255."""
    sheet = _sheet(name, int(rng.integers(_SHEETS)))
    side = min(int(size * rng.uniform(0.7, 1.3)), SHEET)
    y, x = rng.integers(0, SHEET - side + 1, 2)
    piece = sheet[y : y + side, x : x + side]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    piece = cv2.resize(piece, (size, size), interpolation=cv2.INTER_LINEAR)
    return piece * np.float32(rng.uniform(0.85, 1.15))


@cache
def _sheet(name: str, number: int) -> np.ndarray:
    rng = np.random.default_rng([BACKGROUNDS.index(name), number])
    sheet = _PAINTERS[name](rng)
    return np.clip(sheet, 0, 255).astype(np.float32)


def _noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Draw smooth noise with `rows` x `columns` knots: (SHEET, SHEET, 1), about -1..1."""
    knots = rng.standard_normal((rows, columns)).astype(np.float32) * 0.6
    return cv2.resize(knots, (SHEET, SHEET), interpolation=cv2.INTER_CUBIC)[..., None]


def _rgb(*values: int) -> np.ndarray:
    return np.array(values, np.float32)


def _grass(rng: np.random.Generator) -> np.ndarray:
    blades = _noise(rng, 48, 192) + 0.6 * _noise(rng, 24, 384)
    return _rgb(72, 122, 44) + blades * _rgb(34, 40, 22) + _noise(rng, 6, 6) * _rgb(14, 14, 6)


def _sand(rng: np.random.Generator) -> np.ndarray:
    ripples = _noise(rng, 40, 7)
    grain = _noise(rng, SHEET, SHEET)
    return _rgb(206, 180, 128) + ripples * _rgb(14, 14, 12) + grain * _rgb(14, 13, 11)


def _water(rng: np.random.Generator) -> np.ndarray:
    waves = _noise(rng, 72, 14) + 0.7 * _noise(rng, 36, 8)
    return _rgb(34, 92, 148) + waves * _rgb(24, 34, 36)


def _brick_wall(rng: np.random.Generator) -> np.ndarray:
    sheet = np.full((SHEET, SHEET, 3), 176, np.float32)
    height, width = 12, 28
    for row, y in enumerate(range(0, SHEET, height)):
        for x in range(-width, SHEET, width):
            left = max(x + (width // 2) * (row % 2), 0)
            right = max(x + (width // 2) * (row % 2) + width - 2, 0)
            shade = rng.uniform(0.8, 1.15)
            sheet[y : y + height - 2, left:right] = _rgb(150, 74, 56) * shade
    return sheet + _noise(rng, 192, 192) * 9


def _wood(rng: np.random.Generator) -> np.ndarray:
    grain = _noise(rng, 8, 128) + 0.6 * _noise(rng, 4, 300)
    sheet = _rgb(134, 92, 54) + grain * _rgb(26, 20, 14)
    for x in range(int(rng.integers(10, 40)), SHEET, 44):  # gaps between planks
        sheet[:, x : x + 2] *= 0.45
    return sheet


def _snow(rng: np.random.Generator) -> np.ndarray:
    drifts, grain = _noise(rng, 10, 8), _noise(rng, SHEET, SHEET)
    return _rgb(232, 236, 244) + drifts * _rgb(16, 13, 8) + grain * 7


def _sky(rng: np.random.Generator) -> np.ndarray:
    clouds = np.clip(_noise(rng, 9, 7) + 0.5 * _noise(rng, 24, 18), 0, 1)
    return _rgb(122, 174, 226) + clouds * _rgb(118, 72, 26)


def _gravel(rng: np.random.Generator) -> np.ndarray:
    sheet = np.full((SHEET, SHEET, 3), 66, np.float32)
    for x, y in rng.integers(0, SHEET, (5200, 2)).tolist():
        grey = float(rng.uniform(84, 176))
        axes = tuple(int(a) for a in rng.integers(3, 6, 2))
        colour = (grey, grey * 0.97, grey * 0.94)
        cv2.ellipse(sheet, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)
    return sheet + _noise(rng, SHEET, SHEET) * 8


_PAINTERS = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "brick wall": _brick_wall,
    "wood": _wood,
    "snow": _snow,
    "sky": _sky,
    "gravel": _gravel,
}

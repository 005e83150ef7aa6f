"""Draw scenes of the synthetic world: textured backgrounds with objects on them.

Shape letters: H and W pixels. Everything random comes from the generator that is handed in, so a
seed gives the same scene on every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from cat_seg.synthetic.names import COLOURS, NAMES
from cat_seg.synthetic.textures import background

_HUES = dict(zip(COLOURS, (0, 52, 120, 182, 228, 318), strict=True))  # degrees
_LABELS = {name: index for index, name in enumerate(NAMES)}


@dataclass(frozen=True)
class Scene:
    """A picture, what every pixel of it is, and what a caption would mention.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) uint8, indices into `NAMES`.
        names: what is plainly visible, backgrounds first.
        clear: (H, W) bool, pixels that can be named: not of an object of which less than half is
            visible, because others cover it or the picture ends.
    """

    image: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    clear: np.ndarray

    @property
    def caption(self) -> str:
        """One sentence: "a red striped star and a blue plain cross on grass and sky"."""
        things = [f"a {name}" for name in self.names if " " in name and name != "brick wall"]
        grounds = [name for name in self.names if f"a {name}" not in things]
        parts = [" and ".join(things), " and ".join(grounds)]
        return " on ".join(part for part in parts if part)


def draw_scene(
    rng: np.random.Generator,
    size: int,
    objects: Sequence[str],
    backgrounds: Sequence[str],
    radius: tuple[float, float] = (13.0, 34.0),
    inside: float = 0.6,
) -> Scene:
    """Draw one scene.

    Args:
        rng: the only source of randomness.
        size: height and width in pixels.
        objects: names of the objects to place, the last ones in front.
        backgrounds: names of the regions behind them.
        radius: smallest and largest radius of an object in pixels.
        inside: least distance of an object's centre from the edges, in radii.
    """
    image, labels = _draw_backgrounds(rng, size, backgrounds)
    whole = np.zeros(len(NAMES))  # pixels of each name before anything covered them
    for name in backgrounds:
        whole[_LABELS[name]] = 0.06 * size * size
    things = np.zeros(labels.shape, np.int16)  # 0, or the number of the object that is seen there
    areas = [0.0]
    for name in objects:
        window, mask, area = _draw_object(rng, image, labels, name, radius, inside)
        whole[_LABELS[name]] += np.count_nonzero(mask)
        things[window][mask] = len(areas)
        areas.append(area)
    visible = np.bincount(labels.ravel(), minlength=len(NAMES))
    # A thing is named when most of it can be seen (a background: when it fills a corner at least).
    named = (visible >= 0.5 * whole) & (visible > 0)
    seen = np.bincount(things.ravel(), minlength=len(areas))
    clear = (seen >= 0.5 * np.array(areas))[things]
    shown = tuple(name for name in NAMES if named[_LABELS[name]])
    return Scene(_light(rng, image), labels, shown, clear)


def _draw_backgrounds(
    rng: np.random.Generator, size: int, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw regions behind wavy borders: (H, W, 3) float32 image and (H, W) uint8 labels."""
    image = background(rng, names[0], size)
    labels = np.full((size, size), _LABELS[names[0]], np.uint8)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    for name in names[1:]:
        angle = rng.uniform(0, 2 * np.pi)
        along = xs * np.cos(angle) + ys * np.sin(angle)
        across = ys * np.cos(angle) - xs * np.sin(angle)
        wave = 0.05 * np.sin(across * rng.uniform(4, 14) + rng.uniform(0, 6.3))
        region = along + wave > rng.uniform(-0.15, 0.25)
        np.copyto(image, background(rng, name, size), where=region[..., None])
        labels[region] = _LABELS[name]
    return image, labels


def _draw_object(
    rng: np.random.Generator,
    image: np.ndarray,
    labels: np.ndarray,
    name: str,
    radius: tuple[float, float],
    inside: float,
) -> tuple[tuple[slice, slice], np.ndarray, float]:
    """Paint an object into `image` and `labels`.

    Returns:
        a window of the picture, the object's whole mask in it, and the area of its outline in
        pixels, of which a part may lie outside the picture.
    """
    colour, pattern, shape = name.split()
    size = len(image)
    r = float(np.exp(rng.uniform(np.log(radius[0]), np.log(radius[1]))))
    objects_here = labels >= _LABELS["gravel"] + 1
    for _ in range(12):  # looks for a place that hides little of the others
        edge = min(inside * r, size / 2)
        cx, cy = rng.uniform(edge, size - edge, 2)
        x0, y0 = max(int(cx - r - 1), 0), max(int(cy - r - 1), 0)
        x1, y1 = min(int(cx + r + 2), size), min(int(cy + r + 2), size)
        if objects_here[y0:y1, x0:x1].mean() < 0.25:
            break
    alpha = np.zeros((y1 - y0, x1 - x0), np.uint8)
    angle = rng.uniform(-0.35, 0.35) - np.pi / 2  # upright, more or less
    outline = _outline(shape, angle) * r + (cx - x0, cy - y0)
    cv2.fillPoly(alpha, [np.round(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)

    ys, xs = np.mgrid[y0:y1, x0:x1].astype(np.float32)
    xs, ys = xs - np.float32(cx), ys - np.float32(cy)
    ink = _pattern(rng, pattern, xs, ys, r)[..., None]
    tones = _tones(rng, colour)
    paint = tones[0] + ink * (tones[1] - tones[0])
    shade_angle = rng.uniform(0, 2 * np.pi)
    shade = 1 + 0.22 * (xs * np.cos(shade_angle) + ys * np.sin(shade_angle)) / r
    paint = paint * shade[..., None]

    window = image[y0:y1, x0:x1]
    window += (alpha[..., None] / np.float32(255)) * (paint - window)
    mask = alpha > 127
    labels[y0:y1, x0:x1][mask] = _LABELS[name]
    area = cv2.contourArea(outline.astype(np.float32))
    return (slice(y0, y1), slice(x0, x1)), mask, area


def _outline(shape: str, angle: float) -> np.ndarray:
    """Compute the corners (N, 2) of a shape of radius 1, turned by `angle` radians."""
    if shape == "circle":
        points = [(k * np.pi / 16, 0.9) for k in range(32)]
    elif shape == "triangle":
        points = [(k * 2 * np.pi / 3, 1.1) for k in range(3)]
    elif shape == "star":
        points = [(k * np.pi / 5, 1.1 if k % 2 == 0 else 0.46) for k in range(10)]
    else:  # cross
        inner, tip = 0.33 * np.sqrt(2), np.arctan2(0.33, 1.0)
        points = []
        for k in range(4):
            at = k * np.pi / 2
            points += [(at - tip, 1.05), (at + tip, 1.05), (at + np.pi / 4, inner)]
    polar = np.array(points)
    theta = polar[:, 0] + angle
    return np.stack([np.cos(theta), np.sin(theta)], 1) * polar[:, 1:]


def _pattern(
    rng: np.random.Generator, pattern: str, xs: np.ndarray, ys: np.ndarray, r: float
) -> np.ndarray:
    """Compute where the second tone is, 0..1, for offsets (H, W) from the centre in pixels."""
    if pattern == "plain":
        return np.zeros_like(xs)
    period = np.clip(r * rng.uniform(0.3, 0.5), 4.5, 11.0)
    angle, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 2)
    k = 2 * np.pi / period
    u = k * (xs * np.cos(angle) + ys * np.sin(angle)) + phase[0]
    if pattern == "striped":
        return np.clip(0.5 + 2 * np.sin(u), 0, 1)
    v = k * (ys * np.cos(angle) - xs * np.sin(angle)) + phase[1]
    return np.clip(2 * (np.cos(u) + np.cos(v)) - 1.0, 0, 1)  # dots


def _tones(rng: np.random.Generator, colour: str) -> np.ndarray:
    """Draw the colours of an object and of its pattern: (2, 3) RGB, 0..255."""
    hue = (_HUES[colour] + rng.uniform(-9, 9)) % 360
    hsv = np.array([[[hue, rng.uniform(0.65, 1.0), rng.uniform(0.65, 1.0)]]], np.float32)
    tone = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255
    other = tone * 0.25 if rng.random() < 0.5 else 255 - 0.15 * (255 - tone)
    return np.stack([tone, other]).astype(np.float32)


def _light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add light from one side, a tint, blur and sensor noise: (H, W, 3) uint8."""
    size = len(image)
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope = rng.uniform(-0.4, 0.4, 2).astype(np.float32)
    light = rng.uniform(0.75, 1.1) + slope[0] * ramp[:, None] + slope[1] * ramp[None]
    tint = rng.uniform(0.92, 1.08, 3).astype(np.float32)
    image = image * light[..., None] * tint
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image = image + noise * rng.uniform(2, 10)
    return np.clip(image, 0, 255).astype(np.uint8)

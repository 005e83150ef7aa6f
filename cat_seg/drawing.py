"""A segmentation for people to look at (overlay with legend) and for programs (map and names).

Shape letters: H, W image; T classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cat_seg.utils.files import atomic_write

OPACITY = 0.5  # of the class colours over the image
SHORTEST_VIEW = 480  # pixels; smaller images are enlarged in the overlay, so that names are legible
SMALLEST_FONT = 13  # pixels
LONGEST_NAME = 32  # characters of a name in the legend
TEXT, GROUND = (40, 40, 40), (255, 255, 255)


def draw_segmentation(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """Draw the classes over the image, and beside it their names, largest area first.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers; a value outside 0..T-1 leaves its pixels as they are.
        names: the T class names.
    """
    scale = max(1, -(-SHORTEST_VIEW // max(image.shape[:2])))
    if scale > 1:
        size = (image.shape[1] * scale, image.shape[0] * scale)
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        labels = labels.repeat(scale, axis=0).repeat(scale, axis=1)
    font_size = int(np.clip((image.shape[0] * image.shape[1]) ** 0.5 / 34, SMALLEST_FONT, 80))
    picture = Image.fromarray(blend(image, labels, len(names), outline=max(1, font_size // 8)))
    legend = _draw_legend(summarize(labels, names), len(names), picture.height, font_size)
    canvas = Image.new("RGB", (picture.width + legend.width, legend.height), GROUND)
    canvas.paste(picture, (0, 0))
    canvas.paste(legend, (picture.width, 0))
    return canvas


def summarize(labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """The classes that occur, largest area first, as {"id", "name", "pixels", "share"}."""
    counts = np.bincount(labels[(labels >= 0) & (labels < len(names))], minlength=len(names))
    present = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    return [
        {
            "id": i,
            "name": names[i].strip(),
            "pixels": int(counts[i]),
            "share": round(float(counts[i]) / labels.size, 6),
        }
        for i in present
    ]


def save_label_map(
    path: str | Path, labels: np.ndarray, names: Sequence[str], **about: Any
) -> tuple[Path, Path]:
    """Write `path` (PNG of class ids; 16 bit for more than 256 classes) and its names as JSON.

    The JSON, beside the PNG, holds "classes" (id -> name), "present" (see `summarize`) and what
    else is given.

    Returns:
        The paths of PNG and JSON.
    """
    png = Path(path)
    table = png.with_suffix(".json")
    dtype = np.uint8 if len(names) <= 256 else np.uint16
    with atomic_write(png) as temporary:
        Image.fromarray(labels.astype(dtype)).save(temporary, format="PNG")
    contents = {
        **about,
        "height": labels.shape[0],
        "width": labels.shape[1],
        "classes": [name.strip() for name in names],
        "present": summarize(labels, names),
    }
    with atomic_write(table) as temporary:
        Path(temporary).write_text(
            json.dumps(contents, indent=2, ensure_ascii=False) + "\n", "utf-8"
        )
    return png, table


def save_picture(path: str | Path, picture: Image.Image) -> Path:
    """Write a picture in the format of its suffix, complete or not at all."""
    path = Path(path)
    with atomic_write(path) as temporary:
        picture.save(
            temporary, format=Image.registered_extensions()[path.suffix.lower()], quality=92
        )
    return path


@cache
def class_colors(count: int) -> np.ndarray:
    """Colours that are told apart easily; the first ones are the same for any count.

    Each is the candidate farthest, in CIELAB, from those before it, of medium chroma.

    Returns:
        (count, 3) uint8, RGB.
    """
    levels = np.linspace(0, 255, 24).astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = cv2.cvtColor(candidates[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    keep = (lab[:, 0] > 35) & (lab[:, 0] < 90) & (chroma > 15) & (chroma < 80)
    candidates, lab = candidates[keep], lab[keep]
    ground = np.array([[20, 0, 0], [100, 0, 0]], np.float32)
    distance = np.linalg.norm(lab[:, None] - ground, axis=2).min(1)
    colors = np.empty((count, 3), np.uint8)
    for i in range(count):
        best = int(distance.argmax())
        colors[i] = candidates[best]
        distance = np.minimum(distance, np.linalg.norm(lab - lab[best], axis=1))
    return colors


def blend(image: np.ndarray, labels: np.ndarray, count: int, outline: int = 1) -> np.ndarray:
    """Colour each class, with a solid outline of so many pixels where it meets another.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers; a value outside 0..count-1 leaves its pixels as they are.
        count: of classes, see `class_colors`.
        outline: pixels.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    known = (labels >= 0) & (labels < count)
    colors = class_colors(count)[np.where(known, labels, 0)]
    kernel = np.ones((2 * outline + 1, 2 * outline + 1), np.uint8)
    levels = np.where(
        known, labels.astype(np.float32), -1.0
    )  # a type that OpenCV's morphology takes
    border = cv2.dilate(levels, kernel) != cv2.erode(levels, kernel)
    weight = np.where(known, np.where(border, 1.0, OPACITY), 0.0).astype(np.float32)[..., None]
    return np.rint(image + weight * (colors - image.astype(np.float32))).astype(np.uint8)


def _draw_legend(
    present: Sequence[dict[str, Any]], count: int, height: int, font_size: int
) -> Image.Image:
    """Draw swatch, name and share of each class, in as many columns as the height asks for."""
    while True:
        line, margin = int(font_size * 1.7), font_size
        rows = max(1, (height - 2 * margin) // line, min(8, len(present)))
        if font_size <= SMALLEST_FONT or len(present) <= 2 * rows:
            break
        font_size = max(SMALLEST_FONT, int(font_size * 0.85))  # rather than many columns
    font = ImageFont.load_default(font_size)
    entries = [(entry["id"], _short(entry["name"]), _percent(entry["share"])) for entry in present]
    height = max(height, 2 * margin + line * min(rows, len(entries)))
    columns = [entries[i : i + rows] for i in range(0, len(entries), rows)]
    texts = [max(font.getlength(name) for _, name, _ in column) for column in columns]
    share = font.getlength("00.0%")
    widths = [int(2.6 * font_size + text + font_size + share) for text in texts]
    legend = Image.new("RGB", (sum(widths) + margin, height), GROUND)
    draw = ImageDraw.Draw(legend)
    left = margin
    for column, width in zip(columns, widths, strict=True):
        right = left + width - margin
        for row, (index, name, percent) in enumerate(column):
            middle = margin + line * row + line // 2
            half = font_size // 2
            swatch = (left, middle - half, left + 2 * half, middle + half)
            color = tuple(int(c) for c in class_colors(count)[index])
            draw.rounded_rectangle(swatch, radius=max(2, half // 3), fill=color)
            draw.text((left + 1.6 * font_size, middle), name, fill=TEXT, font=font, anchor="lm")
            draw.text((right, middle), percent, fill=TEXT, font=font, anchor="rm")
        left += width
    return legend


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + "…"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0005 else "<0.1%"

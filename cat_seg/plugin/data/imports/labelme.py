"""labelme (https://github.com/wkentaro/labelme), which draws shapes by Pillow's ImageDraw."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cat_seg.errors import CATSegError
from cat_seg.images import open_image
from cat_seg.label_maps import image_size
from cat_seg.label_rules import IGNORED
from cat_seg.plugin.data.imports.source import Imported, paste, read_json, stem


def labelme(source: Path, _: Path | None, __: list[str]) -> Imported:
    """A folder of labelme's JSON files; later shapes lie over earlier ones."""
    found = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    contents = {path: read_json(path) for path in found}
    contents = {p: c for p, c in contents.items() if isinstance(c, dict) and "shapes" in c}
    labels = {shape["label"] for content in contents.values() for shape in content["shapes"]}
    names = sorted(labels - {"__ignore__"})
    index = {name: k for k, name in enumerate(names)} | {"__ignore__": IGNORED}

    def draw(path: Path, content: Mapping[str, Any]) -> np.ndarray:
        height, width = content.get("imageHeight"), content.get("imageWidth")
        if not height or not width:
            height, width = image_size(path.parent / content["imagePath"])
        drawn = np.full((height, width), IGNORED, np.int32)
        for shape in content["shapes"]:
            drawn[_labelme_mask(shape, height, width)] = index[shape["label"]]
        return drawn

    root = source if source.is_dir() else source.parent
    files = {stem(path.relative_to(root).as_posix()): path for path in contents}
    maps = {name: partial(draw, path, contents[path]) for name, path in files.items()}
    return Imported(names, maps, files=files)


def _labelme_mask(shape: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Draw a shape as labelme does: (H, W) bool."""
    kind = shape.get("shape_type") or "polygon"
    points = [tuple(map(float, point)) for point in shape["points"]]
    if kind == "mask":
        return _labelme_bitmap(shape, points, height, width)
    picture = Image.new("L", (width, height))
    pen = ImageDraw.Draw(picture)
    if kind == "polygon" and len(points) > 2:
        pen.polygon(points, outline=1, fill=1)
    elif kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        pen.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=1, fill=1)
    elif kind == "circle" and len(points) == 2:
        (x, y), (edge_x, edge_y) = points
        radius = math.hypot(x - edge_x, y - edge_y)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    elif kind in ("line", "linestrip") and len(points) > 1:
        pen.line(points, fill=1, width=10)
    elif kind == "point" and len(points) == 1:
        (x, y), radius = points[0], 5
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    else:
        raise CATSegError(f"a shape {kind!r} of {len(points)} points is unknown")
    return np.asarray(picture, bool)


def _labelme_bitmap(
    shape: Mapping[str, Any], points: Sequence[tuple[float, ...]], height: int, width: int
) -> np.ndarray:
    """Put a shape's bitmap, a PNG in base64, where its box is."""
    with open_image(base64.b64decode(shape["mask"])) as image:
        bitmap = np.asarray(image).astype(bool)
    return paste(bitmap, points[0], height, width)

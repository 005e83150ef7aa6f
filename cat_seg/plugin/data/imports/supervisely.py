"""Supervisely's projects (https://developer.supervisely.com, Supervisely Annotation Format).

PROJECT/meta.json names the classes, PROJECT/DATASET/ann/NAME.json the objects of an image in
PROJECT/DATASET/img. A bitmap is a PNG, compressed by zlib and written in base64; polygons are
filled by OpenCV, and their holes emptied again, borders included.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cat_seg.errors import CATSegError
from cat_seg.images import open_image
from cat_seg.label_rules import IGNORED
from cat_seg.plugin.data.imports.source import Imported, paste, read_json, stem

_BITMAP_BYTES = 1 << 28  # of a PNG


def supervisely(source: Path, _: Path | None, __: list[str]) -> Imported:
    """A project, or one data set of it; later objects lie over earlier ones."""
    files = sorted(path for path in source.rglob("*.json") if path.parent.name == "ann")
    contents = {path: read_json(path) for path in files}
    meta = next((f / "meta.json" for f in (source, source.parent) if _is_meta(f)), None)
    if meta is not None:
        names = [one["title"] for one in read_json(meta)["classes"]]
    else:
        names = sorted({o["classTitle"] for one in contents.values() for o in one["objects"]})
    draw, drawn_from = {}, {}
    for path, content in contents.items():
        image = path.parent.with_name("img") / path.name.removesuffix(".json")
        name = stem(image.relative_to(source).as_posix())
        if name in draw:
            raise CATSegError(f"{path}: another image has the name {name} too; rename one of them.")
        draw[name] = partial(_draw, content, {title: k for k, title in enumerate(names)})
        drawn_from[name] = path
    return Imported(names, draw, {"IMAGES": str(source)}, drawn_from)


def _is_meta(folder: Path) -> bool:
    return (folder / "meta.json").is_file()


def _draw(content: Mapping[str, Any], index: Mapping[str, int]) -> np.ndarray:
    height, width = content["size"]["height"], content["size"]["width"]
    labels = np.full((height, width), IGNORED, np.int32)
    for one in content["objects"]:
        title = one["classTitle"]
        if title not in index:
            raise CATSegError(f"the class {title!r:.80} is not in meta.json")
        labels[_region(one, height, width)] = index[title]
    return labels


def _region(one: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Draw an object as Supervisely does: (H, W) bool."""
    kind = one.get("geometryType") or ("bitmap" if one.get("bitmap") else "polygon")
    if kind == "bitmap":
        return paste(_bitmap(one["bitmap"]["data"]), one["bitmap"]["origin"], height, width)
    region = np.zeros((height, width), np.uint8)
    exterior, *interior = (
        np.array([[round(x), round(y)] for x, y in points], np.int32)
        for points in (one["points"]["exterior"], *one["points"].get("interior", ()))
    )
    if kind == "polygon":
        cv2.fillPoly(region, [exterior], 1)
        cv2.fillPoly(region, interior, 0)
    elif kind == "rectangle":
        (left, top), (right, bottom) = exterior.min(0), exterior.max(0)
        region[max(0, top) : bottom + 1, max(0, left) : right + 1] = 1
    else:
        raise CATSegError(f"a shape {kind!r:.80} is no region")
    return region.astype(bool)


def _bitmap(data: str) -> np.ndarray:
    """Decode a bitmap: (h, w) bool; of a picture with transparency, what is not transparent."""
    unpacked = zlib.decompressobj().decompress(base64.b64decode(data), _BITMAP_BYTES)
    with open_image(unpacked) as image:
        if image.has_transparency_data:
            return np.asarray(image.convert("RGBA"))[..., 3] > 0
        return np.asarray(image.convert("L")) > 0

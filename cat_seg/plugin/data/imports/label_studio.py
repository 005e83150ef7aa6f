"""Label Studio's tasks as JSON (https://labelstud.io/guide/export, "JSON").

Places are in percent of the picture. A brush's mask is a packed run-length code of RGBA
(https://github.com/thi-ng/umbrella, rle-pack, as label-studio-converter reads it), whose last
channel counts. Polygons are drawn by pycocotools, as in Label Studio's own export to COCO.
"""

from __future__ import annotations

import math
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cat_seg.errors import CATSegError
from cat_seg.label_rules import IGNORED
from cat_seg.plugin.data.datasets.pairs import IMAGE_SUFFIXES
from cat_seg.plugin.data.imports.source import Imported, inside, read_json, stem
from cat_seg.plugin.data.work import Skip

_UPLOADED = re.compile(r"/upload/.*/[0-9a-f]{8}-")  # what Label Studio puts before a file's name


def label_studio(source: Path, _: Path | None, __: list[str]) -> Imported:
    """An export as JSON; of several annotations of a task the one marked as ground truth, or the
    first. Later regions lie over earlier ones."""
    tasks = read_json(source)
    if not isinstance(tasks, list) or not all("annotations" in task for task in tasks):
        raise CATSegError(f'{source}: no list of tasks with "annotations"; export as JSON.')
    results = [_result(task) for task in tasks]
    names = sorted({label for result in results for one in result for label in _labels(one)})
    index = {name: k for k, name in enumerate(names)}
    images = [PurePosixPath(_image(source, task)) for task in tasks]
    common = os.path.commonpath([image.parent for image in images]) if images else ""
    draw = {}
    for image, result in zip(images, results, strict=True):
        name = stem(inside(os.path.relpath(image, common or ".")))
        if name in draw:
            raise CATSegError(f"{source}: two tasks have an image {name}; export them apart.")
        draw[name] = partial(_draw, result, index)
    return Imported(names, draw)


def decode_rle(code: Sequence[int], size: int) -> np.ndarray:
    """Decode the run-length code of a brush.

    It begins with the number of values (32 bits), their bits (5, less 1) and four lengths in bits
    (4 each, less 1). Then each run tells whether it repeats one value (1), which of the lengths its
    own is written in (2), and that length, less 1.

    Args:
        code: bytes.
        size: of the result.

    Raises:
        CATSegError: if it holds another number of values, or ends too early.
    """
    bits = "".join(f"{byte:08b}" for byte in bytes(code))
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise CATSegError("the mask of a brush ends too early")
        return int(bits[at - count : at], 2)

    if (found := read(32)) != size:
        raise CATSegError(f"the mask of a brush has {found} values; expected {size}")
    width = read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(size, np.min_scalar_type((1 << width) - 1))
    done = 0
    while done < size:
        repeats = read(1)
        end = done + read(lengths[read(2)]) + 1
        if repeats:
            values[done:end] = read(width)
        else:
            values[done:end] = [read(width) for _ in range(end - done)][: size - done]
        done = end
    return values


def _result(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The regions of a task, as one annotator left them."""
    kept = [one for one in task["annotations"] if not one.get("was_cancelled")]
    kept.sort(key=lambda one: not one.get("ground_truth"))
    return list(kept[0]["result"]) if kept else []


def _labels(one: Mapping[str, Any]) -> list[str]:
    """The classes of a region; () of what is none, such as a text."""
    found = [v for key, v in one.get("value", {}).items() if key.endswith("labels")]
    return [str(label) for labels in found if isinstance(labels, list) for label in labels]


def _image(source: Path, task: Mapping[str, Any]) -> str:
    """The path of a task's image, without what an upload put before its name."""
    for value in task.get("data", {}).values():
        if not isinstance(value, str):
            continue
        address = urllib.parse.urlsplit(value)
        local = urllib.parse.parse_qs(address.query).get("d")  # /data/local-files/?d=...
        path = local[0] if local else urllib.parse.unquote(address.path)
        if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES:
            return "/" + _UPLOADED.sub("/upload/", path).lstrip("/")
    raise CATSegError(f"{source}: the task {task.get('id')} names no image in its data.")


def _draw(result: Sequence[Mapping[str, Any]], index: Mapping[str, int]) -> np.ndarray:
    regions = [one for one in result if _labels(one)]
    if not regions:
        raise Skip("no regions with a label")
    height, width = regions[0]["original_height"], regions[0]["original_width"]
    labels = np.full((height, width), IGNORED, np.int32)
    for one in regions:
        if one.get("image_rotation"):
            raise CATSegError(f"the picture is turned by {one['image_rotation']} degrees")
        region = _region(one["value"], height, width)
        labels[region] = index[_labels(one)[0]]
    return labels


def _region(value: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Draw a region: (H, W) bool."""
    if "rle" in value:
        rgba = decode_rle(value["rle"], height * width * 4)
        return np.asarray(rgba.reshape(height, width, 4)[..., 3] > 0)
    scale = np.array([width, height]) / 100
    if "points" in value:
        return _polygon(np.array(value["points"], float) * scale, height, width)
    turn = math.radians(value.get("rotation", 0))  # clockwise
    right = np.array([math.cos(turn), math.sin(turn)])
    down = np.array([-right[1], right[0]])
    if "radiusX" in value:
        center = np.array([value["x"], value["y"]]) * scale
        radii = np.array([value["radiusX"], value["radiusY"]]) * scale
        y, x = np.mgrid[:height, :width]
        away = np.stack([x, y], -1) + 0.5 - center  # (H, W, 2)
        return np.asarray((away @ right / radii[0]) ** 2 + (away @ down / radii[1]) ** 2 <= 1)
    if "width" in value:
        corner = np.array([value["x"], value["y"]]) * scale
        across = right * value["width"] * scale[0]
        along = down * value["height"] * scale[1]
        corners = [corner, corner + across, corner + across + along, corner + along]
        return _polygon(np.array(corners), height, width)
    raise CATSegError(f"a region with {', '.join(value)} is unknown")


def _polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draw a polygon (N, 2) as x, y in pixels."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.frPyObjects([points.ravel().tolist()], height, width)
    return np.asarray(coco_mask.decode(encoded)[..., 0].astype(bool))

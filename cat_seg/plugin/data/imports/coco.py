"""COCO's panoptic and instance annotations (https://cocodataset.org/#format-data).

Colours of panoptic PNGs are ids R + 256 G + 256^2 B; pycocotools draws polygons and RLE.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cat_seg.errors import CATSegError
from cat_seg.label_maps import read_colors
from cat_seg.label_rules import IGNORED, LabelRule
from cat_seg.plugin.data.imports.source import Imported, inside, read_json, stem
from cat_seg.plugin.data.work import Skip


def coco_panoptic(source: Path, masks: Path | None, _: list[str]) -> Imported:
    """COCO's panoptic segmentation: a JSON, and a folder of PNGs (of its name, if not given)."""
    content = _coco(source, "annotations", "categories")
    names, index = _categories(content["categories"])
    folder = masks or source.with_suffix("")
    if not folder.is_dir():
        raise CATSegError(f"No folder {folder.absolute()} of panoptic PNGs; give it by --masks.")

    def draw(annotation: Mapping[str, Any]) -> np.ndarray:
        segments = {int(s["id"]): index[s["category_id"]] for s in annotation["segments_info"]}
        # Ids are R + 256 G + 256^2 B, `read_colors` gives 256^2 R + 256 G + B.
        colors = read_colors(folder / inside(annotation["file_name"]))
        ids = (colors & 255) << 16 | colors & 0xFF00 | colors >> 16
        table = ((0, IGNORED), *segments.items())
        try:
            return LabelRule(len(names), ignore=(), mapping=table).apply(ids)
        except CATSegError as error:
            wrong = sorted(set(np.unique(ids).tolist()) - {0, *segments})
            raise CATSegError(f"segments {wrong[:5]} are in the PNG, not in the JSON") from error

    annotations = content["annotations"]
    return Imported(names, {stem(a["file_name"]): partial(draw, a) for a in annotations})


def coco_instances(source: Path, _: Path | None, __: list[str]) -> Imported:
    """COCO's instances: polygons and RLE; where they overlap, the smaller one is on top."""
    from pycocotools import mask as coco_mask

    content = _coco(source, "images", "annotations", "categories")
    names, index = _categories(content["categories"])
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)

    def draw(image: Mapping[str, Any]) -> np.ndarray:
        height, width = image["height"], image["width"]
        if not of_image[image["id"]]:
            raise Skip("no annotations")
        regions = []
        for annotation in of_image[image["id"]]:
            shape = annotation["segmentation"]
            if isinstance(shape, list):
                shape = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
            elif isinstance(shape["counts"], list):
                shape = coco_mask.frPyObjects(shape, height, width)
            region = coco_mask.decode(shape).astype(bool)  # (H, W)
            if region.shape != (height, width):
                raise CATSegError(f"an RLE of {region.shape} in an image of {(height, width)}")
            regions.append((int(region.sum()), region, index[annotation["category_id"]]))
        labels = np.full((height, width), IGNORED, np.int32)
        for _, region, label in sorted(regions, key=lambda r: -r[0]):
            labels[region] = label
        return labels

    return Imported(names, {stem(i["file_name"]): partial(draw, i) for i in content["images"]})


def _categories(categories: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[int, int]]:
    """Names in the order of the ids, and the index of each id."""
    ordered = sorted(categories, key=lambda category: category["id"])
    return [c["name"] for c in ordered], {c["id"]: k for k, c in enumerate(ordered)}


def _coco(path: Path, *keys: str) -> dict[str, Any]:
    content = read_json(path)
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise CATSegError(f"{path}: no list {key!r}; expected COCO's format.")
    return dict(content)

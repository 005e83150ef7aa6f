"""Other formats to label maps, exactly as each format defines its regions.

A format's function lists the classes and, for each image, the `Work` of writing its label map. An
unlabelled pixel becomes 255, or 65535 where there are more than 255 classes.

Sources: the COCO panoptic format (https://cocodataset.org/#format-data), whose colours are ids
R + 256 G + 256^2 B; COCO's polygons and RLE, which pycocotools draws; labelme
(https://github.com/wkentaro/labelme), which draws shapes by Pillow's ImageDraw; the colour map of
the PASCAL VOC development kit; Cityscapes' ids
(https://github.com/mcordts/cityscapesScripts, helpers/labels.py).
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from cat_seg.class_lists import class_names, label_ids
from cat_seg.errors import CATSegError
from cat_seg.label_maps import image_size, read_colors, write_label_map
from cat_seg.label_rules import IGNORED, LabelRule
from cat_seg.plugin.data.datasets.pairs import IMAGE_SUFFIXES
from cat_seg.plugin.data.work import Skip, Summary, Work, run
from cat_seg.utils.files import atomic_write


class Imported(NamedTuple):
    """What a source holds."""

    names: list[str]
    # Name of the label map below the output, without suffix -> draws it: (H, W), IGNORED where
    # there is no class.
    draw: Mapping[str, Callable[[], np.ndarray]]
    options: Mapping[str, Any] = {}  # keys of DATASETS.FOLDERS that go with it


def import_labels(
    kind: str, source: Path, output: Path, *, masks: Path | None = None, names: Sequence[str] = ()
) -> tuple[Summary, dict[str, Any]]:
    """Write output/labels/**.png and output/names.json.

    Label maps that are there are kept, so that an interrupted import goes on.

    Args:
        kind: a key of `FORMATS`.
        source: file or folder of annotations.
        output: folder to write.
        masks: of coco-panoptic, the folder of its PNGs.
        names: of voc, the classes in the order of the colour map.

    Returns:
        What was written and what not, and the keys for an entry of DATASETS.FOLDERS.

    Raises:
        CATSegError: if the source is not of that format, or the output holds other classes.
    """
    if not source.exists():
        raise CATSegError(f"{source}: there is no such file or folder to import.")
    found = FORMATS[kind](source, masks, list(names))
    if not found.draw:
        raise CATSegError(f"{source}: nothing to import as {kind}.")
    depth = np.uint8 if len(found.names) <= 255 else np.uint16
    listed = output / "names.json"
    content = json.dumps(found.names, indent=1, ensure_ascii=False) + "\n"
    if listed.exists() and listed.read_text(encoding="utf-8") != content:
        raise CATSegError(f"{listed} has other classes than {source}; choose another --output.")
    with atomic_write(listed) as part:
        part.write_text(content, encoding="utf-8")
    work = []
    for name, draw in found.draw.items():
        path = output / "labels" / f"{_inside(name)}.png"
        work.append(Work(name, (path,), partial(_write, path, draw, depth)))
    entry = {"LABELS": str(output / "labels"), "CLASSES": str(listed), **found.options}
    if depth == np.uint16:
        entry["IGNORE"] = 65535
    return run(f"{kind} -> {output}", work), entry


def _write(path: Path, draw: Callable[[], np.ndarray], depth: type[np.unsignedinteger]) -> None:
    labels = draw()
    write_label_map(path, np.where(labels == IGNORED, np.iinfo(depth).max, labels).astype(depth))


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
        colors = read_colors(folder / _inside(annotation["file_name"]))
        ids = (colors & 255) << 16 | colors & 0xFF00 | colors >> 16
        table = ((0, IGNORED), *segments.items())
        try:
            return LabelRule(len(names), ignore=(), mapping=table).apply(ids)
        except CATSegError as error:
            wrong = sorted(set(np.unique(ids).tolist()) - {0, *segments})
            raise CATSegError(f"segments {wrong[:5]} are in the PNG, not in the JSON") from error

    annotations = content["annotations"]
    return Imported(names, {_stem(a["file_name"]): partial(draw, a) for a in annotations})


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

    return Imported(names, {_stem(i["file_name"]): partial(draw, i) for i in content["images"]})


def labelme(source: Path, _: Path | None, __: list[str]) -> Imported:
    """A folder of labelme's JSON files; later shapes lie over earlier ones."""
    files = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    contents = {path: _read_json(path) for path in files}
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
    return Imported(
        names,
        {
            _stem(path.relative_to(root).as_posix()): partial(draw, path, content)
            for path, content in contents.items()
        },
    )


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
    import base64
    import io

    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
        bitmap = np.asarray(image).astype(bool)
    left, top = (int(value) for value in points[0])
    region = np.zeros((height, width), bool)
    place = region[top : top + bitmap.shape[0], left : left + bitmap.shape[1]]
    place[:] = bitmap[: place.shape[0], : place.shape[1]]
    return region


def voc(source: Path, _: Path | None, names: list[str]) -> Imported:
    """A folder of masks in VOC's colours (or those of a labelmap.txt), as indices or as RGB."""
    listed = [path for path in (source, source.parent) if (path / "labelmap.txt").is_file()]
    if listed:
        names, colors = _labelmap(listed[0] / "labelmap.txt")
    else:
        names = names or ["background", *class_names("voc20")]
        colors = [voc_color(k) for k in range(len(names))]
    table = dict(zip(colors, range(len(names)), strict=True)) | {voc_color(255): IGNORED}
    rule = LabelRule(len(names), ignore=(), mapping=tuple(table.items()), colors=True)
    files = [path for path in sorted(source.rglob("*.png")) if not path.name.startswith(".")]
    return Imported(
        names,
        {_stem(path.relative_to(source).as_posix()): partial(rule.read, path) for path in files},
    )


def voc_color(index: int) -> int:
    """The colour 0xRRGGBB of an index: its bits go in turn to red, green, blue, highest first."""
    color = [0, 0, 0]
    for position in range(8):
        for channel in range(3):
            color[channel] |= (index >> (3 * position + channel) & 1) << (7 - position)
    red, green, blue = color
    return red << 16 | green << 8 | blue


def _labelmap(path: Path) -> tuple[list[str], list[int]]:
    """Read the names and colours of a labelmap.txt, "name:r,g,b:parts:actions" a line."""
    names, colors = [], []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.match(r"(.+?):(\d+),(\d+),(\d+)", line)
        if not match:
            raise CATSegError(f'{path}: {line!r:.80}; expected "name:r,g,b::".')
        names.append(match[1])
        red, green, blue = (int(match[i]) for i in (2, 3, 4))
        colors.append(red << 16 | green << 8 | blue)
    return names, colors


def cityscapes(source: Path, _: Path | None, __: list[str]) -> Imported:
    """A folder of *_labelIds.png, such as gtFine/val: the 19 classes, all others ignored."""
    names = class_names("cityscapes")
    table = tuple((value, k) for k, value in enumerate(label_ids("cityscapes")))
    rule = LabelRule(len(names), ignore=(), mapping=table, other=IGNORED)
    draw = {}
    for path in sorted(source.rglob("*_labelIds.png")):
        name = re.sub(r"_gt(Fine|Coarse)_labelIds\.png$", "", path.relative_to(source).as_posix())
        draw[name.removesuffix("_labelIds.png")] = partial(rule.read, path)
    return Imported(names, draw, {"IMAGE_SUFFIX": "_leftImg8bit"})


FORMATS: dict[str, Callable[[Path, Path | None, list[str]], Imported]] = {
    "coco-panoptic": coco_panoptic,
    "coco-instances": coco_instances,
    "labelme": labelme,
    "voc": voc,
    "cityscapes": cityscapes,
}


def _categories(categories: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[int, int]]:
    """Names in the order of the ids, and the index of each id."""
    ordered = sorted(categories, key=lambda category: category["id"])
    return [c["name"] for c in ordered], {c["id"]: k for k, c in enumerate(ordered)}


def _coco(path: Path, *keys: str) -> dict[str, Any]:
    content = _read_json(path)
    for key in keys:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise CATSegError(f"{path}: no list {key!r}; expected COCO's format.")
    return dict(content)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CATSegError(f"{path}: cannot be read as JSON ({error})") from error


def _inside(name: str) -> str:
    """A name that a file brings, if it stays below the folder that it is put into.

    Raises:
        CATSegError: if it does not.
    """
    path = PurePosixPath(str(name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
        raise CATSegError(f"the file name {name!r:.100} leads out of its folder")
    return str(path)


def _stem(name: str) -> str:
    """A file's name without the suffix of an image or a JSON."""
    path = PurePosixPath(name)
    known = path.suffix.lower() in IMAGE_SUFFIXES | {".json"}
    return str(path.with_suffix("")) if known else name

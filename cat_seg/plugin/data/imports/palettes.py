"""Masks whose values or colours are a benchmark's: PASCAL VOC, Cityscapes.

Sources: the colour map of the PASCAL VOC development kit; Cityscapes' ids
(https://github.com/mcordts/cityscapesScripts, helpers/labels.py).
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from cat_seg.class_lists import class_names, label_ids
from cat_seg.errors import CATSegError
from cat_seg.label_rules import IGNORED, LabelRule
from cat_seg.plugin.data.imports.source import Imported, stem


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
    found = [path for path in sorted(source.rglob("*.png")) if not path.name.startswith(".")]
    files = {stem(path.relative_to(source).as_posix()): path for path in found}
    maps = {name: partial(rule.read, path) for name, path in files.items()}
    return Imported(names, maps, files=files)


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
    files = {}
    for path in sorted(source.rglob("*_labelIds.png")):
        name = re.sub(r"_gt(Fine|Coarse)_labelIds\.png$", "", path.relative_to(source).as_posix())
        files[name.removesuffix("_labelIds.png")] = path
    maps = {name: partial(rule.read, path) for name, path in files.items()}
    return Imported(names, maps, {"IMAGE_SUFFIX": "_leftImg8bit"}, files)

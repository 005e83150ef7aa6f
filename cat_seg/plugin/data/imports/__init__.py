"""Other formats to label maps, exactly as each format defines its regions.

A format's function lists the classes and, for each image, how its label map is drawn. An unlabelled
pixel becomes 255, or 65535 where there are more than 255 classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cat_seg.errors import CATSegError
from cat_seg.label_maps import write_label_map
from cat_seg.label_rules import IGNORED
from cat_seg.plugin.data.imports.coco import coco_instances, coco_panoptic
from cat_seg.plugin.data.imports.label_studio import label_studio
from cat_seg.plugin.data.imports.labelme import labelme
from cat_seg.plugin.data.imports.palettes import cityscapes, voc
from cat_seg.plugin.data.imports.source import Imported, inside
from cat_seg.plugin.data.imports.supervisely import supervisely
from cat_seg.plugin.data.work import Summary, Work, run
from cat_seg.utils.files import atomic_write

FORMATS: dict[str, Callable[[Path, Path | None, list[str]], Imported]] = {
    "coco-panoptic": coco_panoptic,
    "coco-instances": coco_instances,
    "labelme": labelme,
    "voc": voc,
    "cityscapes": cityscapes,
    "supervisely": supervisely,
    "label-studio": label_studio,
}


def import_labels(
    kind: str, source: Path, output: Path, *, masks: Path | None = None, names: Sequence[str] = ()
) -> tuple[Summary, dict[str, Any]]:
    """Write output/labels/**.png and output/names.json.

    Label maps that are there are kept, so that an interrupted import goes on, unless what they were
    drawn from is newer.

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
    try:
        found = FORMATS[kind](source, masks, list(names))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise CATSegError(f"{source}: not as {kind} has it ({error!r}).") from error
    if not found.draw:
        raise CATSegError(f"{source}: nothing to import as {kind}.")
    if len(found.names) > 65535:
        raise CATSegError(f"{source}: {len(found.names)} classes; label maps here hold 65535.")
    depth = np.uint8 if len(found.names) <= 255 else np.uint16
    listed = output / "names.json"
    content = json.dumps(found.names, indent=1, ensure_ascii=False) + "\n"
    if listed.exists() and listed.read_text(encoding="utf-8") != content:
        raise CATSegError(f"{listed} has other classes than {source}; choose another --output.")
    with atomic_write(listed) as part:
        part.write_text(content, encoding="utf-8")
    work = []
    for name, draw in found.draw.items():
        path = output / "labels" / f"{inside(name)}.png"
        drawn_from = (found.files.get(name, source),)
        work.append(Work(name, (path,), partial(_write, path, draw, depth), drawn_from))
    entry = {"LABELS": str(output / "labels"), "CLASSES": str(listed), **found.options}
    if depth == np.uint16:
        entry["IGNORE"] = 65535
    return run(f"{kind} -> {output}", work), entry


def _write(path: Path, draw: Callable[[], np.ndarray], depth: type[np.unsignedinteger]) -> None:
    labels = draw()
    write_label_map(path, np.where(labels == IGNORED, np.iinfo(depth).max, labels).astype(depth))

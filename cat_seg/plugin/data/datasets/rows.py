"""Benchmarks that are read as they are distributed: to each a row, as in DATASETS.FOLDERS.

Part sets: the classes and layout of OV-PARTS (https://github.com/OpenRobotLab/OV_PARTS).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from cat_seg.class_lists import label_ids
from cat_seg.plugin.data.datasets.builtin import dataset_root
from cat_seg.plugin.data.datasets.folders import FolderData

_ORIGIN = (
    "it is read from below DETECTRON2_DATASETS, else ./datasets, where it is expected as "
    "datasets/README.md says"
)
# The name, which is that of the class list too -> title, images when complete (0: not known here),
# and the keys of DATASETS.FOLDERS, with folders below the root.
ROWS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "cityscapes": (
        "Cityscapes",
        500,
        {
            "IMAGES": "cityscapes/leftImg8bit/val",
            "LABELS": "cityscapes/gtFine/val",
            "IMAGE_SUFFIX": "_leftImg8bit",
            "LABEL_SUFFIX": "_gtFine_labelIds",
            "MAP": {id_: k for k, id_ in enumerate(label_ids("cityscapes"))} | {"other": "ignore"},
        },
    ),
    "bdd100k": (
        "BDD100K",
        1000,
        {
            "CLASSES": "cityscapes",
            "IMAGES": "bdd100k/images/10k/val",
            "LABELS": "bdd100k/labels/sem_seg/masks/val",
        },
    ),
    "mapillary": (
        "Mapillary Vistas",
        2000,
        {
            "IMAGES": "mapillary_vistas/validation/images",
            "LABELS": "mapillary_vistas/validation/v1.2/labels",
            "IGNORE": 65,
        },
    ),
    "pascal_part_116": (
        "PASCAL-Part-116",
        0,
        {
            "IMAGES": "PascalPart116/images/val",
            "LABELS": "PascalPart116/annotations_detectron2_part/val",
        },
    ),
    "ade_part_234": (
        "ADE20K-Part-234",
        0,
        {
            "IMAGES": "ADE20KPart234/images/validation",
            "LABELS": "ADE20KPart234/annotations_detectron2_part/validation",
            "IGNORE": 65535,
        },
    ),
}


def register_rows(root: Path | None = None) -> None:
    """Register every row, below `root` (default: `dataset_root()`)."""
    root = root or dataset_root()
    for name, (title, size, keys) in ROWS.items():
        entry = {"NAME": name, "CLASSES": name, **keys}
        entry |= {key: root / keys[key] for key in ("IMAGES", "LABELS")}
        replace(FolderData.parse(entry), origin=_ORIGIN).register()
        MetadataCatalog.get(name).set(title=title, **({"num_images": size} if size else {}))

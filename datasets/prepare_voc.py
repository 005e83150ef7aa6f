"""PASCAL VOC 2012 val, 20 classes: labels 1 to 20 become 0 to 19.

Label 0 is ignored for PAS-20, and becomes 20, "background", for PAS-20b. A mask in which nothing
is left is not written, so that its image is not evaluated.
"""

import sys
from pathlib import Path

from preparation import (
    LabelTable,
    Summary,
    main,
    mask_work,
    needed,
    read_list,
    run,
    split_folders,
)

CLASSES = {label: label - 1 for label in range(1, 21)}
TABLES = {
    "voc_2012_test_sem_seg": LabelTable({0: 255, 255: 255} | CLASSES),
    "voc_2012_test_background_sem_seg": LabelTable({0: 20, 255: 255} | CLASSES),
}


def prepare(root: Path) -> list[Summary]:
    base = root / "VOCdevkit/VOC2012"
    ids = read_list(base / "ImageSets/Segmentation/val.txt")
    masks = needed(base / "SegmentationClassAug")
    summaries = []
    for name, table in TABLES.items():
        _, output = split_folders(root, name)
        work = [
            mask_work(masks / f"{id_}.png", output / f"{id_}.png", table, drop_empty=True)
            for id_ in ids
        ]
        summaries.append(run(name, work))
    return summaries


if __name__ == "__main__":
    sys.exit(main(prepare, __doc__))

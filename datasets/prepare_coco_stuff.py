"""COCO-Stuff with 171 classes, train2017 and val2017: unused ids are ignored, the rest close up."""

import sys
from pathlib import Path

from preparation import LabelTable, Summary, convert_folder, main, needed, split_folders

from cat_seg.class_lists import label_ids

TABLE = LabelTable({id_: label for label, id_ in enumerate(label_ids("coco"))}, other=255)


def prepare(root: Path) -> list[Summary]:
    sources = needed(root / "coco-stuff/annotations")
    summaries = []
    for split in ("train", "test"):
        _, output = split_folders(root, f"coco_2017_{split}_stuff_all_sem_seg")
        title, source = f"COCO-Stuff {output.name}", sources / output.name
        if source.is_dir():
            summaries.append(convert_folder(title, source, output, TABLE))
        else:
            summaries.append(Summary(title, skipped={"this split is not there": [str(source)]}))
    if not any(summary.written + summary.kept for summary in summaries):
        summaries[-1].wrong["neither train2017 nor val2017 has masks"].append(str(sources))
    return summaries


if __name__ == "__main__":
    sys.exit(main(prepare, __doc__))

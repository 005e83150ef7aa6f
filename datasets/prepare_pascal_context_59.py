"""PASCAL Context val, 59 classes: the segments of trainval_merged.json, painted in file order."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from preparation import LabelTable, Skip, Summary, Work, main, needed, run, split_folders
from pycocotools import mask as rle_mask

from cat_seg.class_lists import label_ids
from cat_seg.label_maps import write_label_map

TABLE = LabelTable({id_: label for label, id_ in enumerate(label_ids("pc59"))}, other=255)


def prepare(root: Path) -> list[Summary]:
    source = needed(root / "VOCdevkit/VOC2010/trainval_merged.json")
    _, output = split_folders(root, "context_59_test_sem_seg")
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        segments = defaultdict(list)
        for segment in content["annos_segmentation"]:
            segments[segment["image_id"]].append(segment)
        work = [
            _work(source, image, segments[image.get("image_id", image.get("id"))], output)
            for image in content["images"]
            if image["phase"] == "val"
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{source}: expected the annotations of PASCAL Context "
            f"({type(error).__name__}: {error}); is the download complete?"
        ) from error
    summary = run("PC-59", work)
    if not work:
        summary.wrong['no image has phase "val"'].append(source.name)
    return [summary]


def _work(
    source: Path, image: dict[str, Any], segments: list[dict[str, Any]], folder: Path
) -> Work:
    name = Path(image["file_name"]).name
    output = folder / f"{Path(name).stem}.png"

    def make() -> None:
        if not segments:
            raise Skip("image without annotation")
        write_label_map(output, TABLE(paint(segments)).astype(np.uint8))

    return Work(name, (output,), make, (source,))


def paint(segments: list[dict[str, Any]]) -> np.ndarray:
    """Paint category ids, later segments over earlier ones: (H, W), 0 where there is none."""
    canvas = np.zeros(segments[0]["segmentation"]["size"], dtype=np.int64)
    for segment in segments:
        rle = segment["segmentation"]
        if isinstance(rle["counts"], list):  # not compressed
            rle = rle_mask.frPyObjects(rle, *rle["size"])
        canvas[rle_mask.decode(rle).astype(bool)] = segment["category_id"]
    return canvas


if __name__ == "__main__":
    sys.exit(main(prepare, __doc__))

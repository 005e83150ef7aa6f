"""ADE20K (2021-17-01) with 847 classes, validation images; their shorter side becomes at most 512.

The class of a pixel is written in the red and green channels of *_seg.png.
"""

import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from preparation import LabelTable, Summary, Work, main, needed, run, split_folders

from cat_seg.class_lists import label_ids
from cat_seg.images import open_image
from cat_seg.label_maps import write_label_map
from cat_seg.trust.weights import read_file
from cat_seg.utils.files import write_picture

SHORT_SIDE = 512  # pixels
TABLE = LabelTable({id_: label for label, id_ in enumerate(label_ids("ade847"))}, other=65535)


def prepare(root: Path) -> list[Summary]:
    images, labels = split_folders(root, "ade20k_full_sem_seg_freq_val_all")
    index = needed(root / "ADE20K_2021_17_01/index_ade20k.pkl")
    work = []
    for folder, name in read_index(index):
        source = root / folder / name
        outputs = images / f"{source.stem}.jpg", labels / f"{source.stem}.tif"
        sources = source, source.with_name(f"{source.stem}_seg.png")
        work.append(Work(name, outputs, partial(convert, source, *outputs), sources))
    return [run("ADE-847", work)]


def read_index(path: Path) -> list[tuple[str, str]]:
    """Read folder and file name of the validation images, executing nothing in the pickle.

    Raises:
        ValueError: if it is no such index.
    """
    index = read_file(path)
    try:
        entries = list(zip(index["folder"], index["filename"], strict=True))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected lists `folder` and `filename` ({error})") from error
    entries = [(str(folder), str(name)) for folder, name in entries]
    validation = [(f, n) for f, n in entries if n.startswith("ADE_val_") and Path(n).name == n]
    if not validation:
        raise ValueError(f"{path}: no ADE_val_* among {len(entries)} images")
    return validation


def convert(source: Path, image_file: Path, label_file: Path) -> None:
    """Write one image and its label map."""
    with open_image(source) as opened:
        pixels = np.asarray(opened)
    with open_image(source.with_name(f"{source.stem}_seg.png")) as opened:
        codes = np.asarray(opened)
    if codes.ndim != 3 or codes.shape[:2] != pixels.shape[:2]:
        raise ValueError(f"image is {pixels.shape}, segmentation {codes.shape}; expected RGB codes")
    red, green = codes[..., 0].astype(np.int64), codes[..., 1].astype(np.int64)
    labels = TABLE(red // 10 * 256 + green).astype(np.uint16)

    height, width = labels.shape
    if (short := min(height, width)) > SHORT_SIDE:
        size = round(width * SHORT_SIDE / short), round(height * SHORT_SIDE / short)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    write_picture(image_file, Image.fromarray(pixels))  # at Pillow's default quality, as published
    write_label_map(label_file, labels)


if __name__ == "__main__":
    sys.exit(main(prepare, __doc__))

"""PASCAL Context val, 459 classes: labels 1 to 459 of the .mat files become 0 to 458 (16 bit)."""

import sys
from pathlib import Path

import numpy as np
import scipy.io
from preparation import LabelTable, Skip, Summary, Work, main, needed, read_list, run, split_folders

from cat_seg.label_maps import write_label_map

TABLE = LabelTable({0: 459} | {label: label - 1 for label in range(1, 460)})


def prepare(root: Path) -> list[Summary]:
    base = root / "VOCdevkit/VOC2010"
    ids = read_list(base / "pascalcontext_val.txt")
    mats = needed(base / "trainval")
    _, output = split_folders(root, "context_459_test_sem_seg")
    return [run("PC-459", [_work(mats / f"{id_}.mat", output / f"{id_}.tif") for id_ in ids])]


def _work(mat: Path, output: Path) -> Work:
    def make() -> str | None:
        if not mat.exists():
            raise Skip("listed, but there is no .mat")
        labels = read_mat(mat)
        write_label_map(output, TABLE(labels).astype(np.uint16))
        return None if labels.all() else "label 0, which means nothing, is ignored"

    return Work(mat.name, (output,), make, (mat,))


def read_mat(path: Path) -> np.ndarray:
    """Read the label map (H, W) of a .mat file, int64; floats are taken if they are whole.

    Raises:
        ValueError: if there is no such map.
    """
    labels = scipy.io.loadmat(path).get("LabelMap")
    if labels is None or labels.ndim != 2:
        raise ValueError("no two-dimensional LabelMap in it")
    whole = labels.astype(np.int64)
    if (whole != labels).any():
        raise ValueError("labels are not whole numbers")
    return whole


if __name__ == "__main__":
    sys.exit(main(prepare, __doc__))

"""Images and their label maps, matched by name and checked."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cat_seg.images import SUFFIXES as IMAGE_SUFFIXES
from cat_seg.label_maps import image_size, read_label_map


class Pair(NamedTuple):
    """An image and its label map; the image may be missing."""

    image: Path
    label: Path


def files_by_stem(folder: Path, suffixes: Set[str]) -> dict[str, Path]:
    """List the folder's files with one of the suffixes by their stem, sorted.

    Hidden files (.DS_Store, ._name.png, parts of an interrupted write) are no data.
    """
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return {path.stem: path for path in names if path.suffix.lower() in suffixes}


def find_pairs(images: Path, labels: Path, label_suffixes: Set[str]) -> list[Pair]:
    """Pair each label map with the image of its name, in the order of names.

    The label maps decide: images without one are not part of the split. Where the image is
    missing, the pair names the .jpg that should be there, so that reading it says so.
    """
    found = files_by_stem(images, IMAGE_SUFFIXES)
    return [
        Pair(found.get(stem, images / f"{stem}.jpg"), label)
        for stem, label in files_by_stem(labels, label_suffixes).items()
    ]


def pair_problem(pair: Pair, num_classes: int, ignore_label: int) -> str | None:
    """Say what is wrong with a pair: unreadable, different sizes, a label out of range."""
    try:
        image, labels = image_size(pair.image), read_label_map(pair.label)
    except ValueError as error:
        return str(error)
    if image != labels.shape:
        return (
            f"{pair.label}: {labels.shape[0]} x {labels.shape[1]} pixels, but its image "
            f"{pair.image} has {image[0]} x {image[1]} (height x width)"
        )
    values = np.unique(labels)
    wrong = values[((values < 0) | (values >= num_classes)) & (values != ignore_label)]
    if wrong.size:
        shown = ", ".join(map(str, wrong[:5])) + (", ..." if wrong.size > 5 else "")
        return (
            f"{pair.label}: label {shown} is out of range; expected 0 to {num_classes - 1}, "
            f"or {ignore_label} to ignore"
        )
    return None

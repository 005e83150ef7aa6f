"""Your own data: a folder of images, a folder of label maps, and a JSON list of names."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm.contrib.concurrent import thread_map

from cat_seg.errors import CATSegError
from cat_seg.palette import name_colors
from cat_seg.plugin.data.datasets.builtin import SPLITS
from cat_seg.plugin.data.datasets.pairs import (
    IMAGE_SUFFIXES,
    Pair,
    files_by_stem,
    find_pairs,
    pair_problem,
)
from cat_seg.resources import user_file
from cat_seg.utils.files import atomic_write, cache_folder
from cat_seg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

LABEL_SUFFIXES = {".png", ".tif", ".tiff", ".bmp"}
_SHOWN = 10  # problems listed in an error


def register_folders(cfg: CfgNode) -> None:
    """Register every entry of DATASETS.FOLDERS, see `register_folder`.

    An entry is {NAME, IMAGES, LABELS, CLASSES[, IGNORE]}.

    Raises:
        CATSegError: if an entry lacks a key or has an unknown one, or its names cannot be read.
    """
    for entry in cfg.DATASETS.FOLDERS:
        keys = set(entry) if isinstance(entry, Mapping) else set()
        needed = {"NAME", "IMAGES", "LABELS", "CLASSES"}
        if not needed <= keys <= needed | {"IGNORE"}:
            raise CATSegError(
                "DATASETS.FOLDERS: expected entries {NAME, IMAGES, LABELS, CLASSES[, IGNORE]}, "
                f"got {entry}."
            )
        register_folder(
            entry["NAME"],
            entry["IMAGES"],
            entry["LABELS"],
            entry["CLASSES"],
            ignore_label=entry.get("IGNORE", 255),
        )


def register_folder(
    name: str,
    images: str | Path,
    labels: str | Path,
    names_json: str | Path,
    *,
    ignore_label: int = 255,
) -> None:
    """Register your own data, so that DATASETS.TRAIN and TEST may name it.

    An image and its label map have the same file name but for the suffix. The data is checked
    when it is first asked for (`DatasetCatalog.get`): a folder or file that is missing or
    unreadable, an image or label map without partner, different sizes and labels out of range
    are a CATSegError then, which names the files. Registering a name again replaces it.

    Args:
        name: Name to register.
        images: Folder of images.
        labels: Folder of label maps: one channel, 8 or 16 bit, pixel k is the k-th name.
        names_json: JSON list of class names, looked for as `user_file` does.
        ignore_label: Label of pixels that belong to no class.

    Raises:
        CATSegError: if the name is taken, the names cannot be read, or one has the ignore label.
    """
    if name in {split.name for split in SPLITS}:
        raise CATSegError(f"DATASETS.FOLDERS: {name} is a published split; choose another NAME.")
    images, labels = Path(images).expanduser(), Path(labels).expanduser()
    names = Vocabulary.read(user_file(names_json)).strings
    if 0 <= ignore_label < len(names):
        raise CATSegError(
            f"{name}: the ignore label {ignore_label} is also the label of "
            f"{names[ignore_label]!r}; choose one that is not below {len(names)}."
        )
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    load = partial(_load, name, images, labels, len(names), ignore_label)
    DatasetCatalog.register(name, cache(load))
    MetadataCatalog.get(name).set(
        stuff_classes=[class_name.strip() for class_name in names],
        stuff_colors=[tuple(color) for color in name_colors(names).tolist()],
        vocabulary=names,
        ignore_label=ignore_label,
        evaluator_type="sem_seg",
        image_root=str(images),
        sem_seg_root=str(labels),
    )


def _load(
    name: str, images: Path, labels: Path, num_classes: int, ignore_label: int
) -> list[dict[str, str]]:
    """List the images in detectron2's format, once they are found to be in order."""
    pairs = _matched_pairs(name, images, labels)
    _check(name, pairs, num_classes, ignore_label)
    return [{"file_name": str(p.image), "sem_seg_file_name": str(p.label)} for p in pairs]


def _matched_pairs(name: str, images: Path, labels: Path) -> list[Pair]:
    for key, folder in (("IMAGES", images), ("LABELS", labels)):
        if not folder.is_dir():
            raise CATSegError(
                f"{name}: no folder {folder.absolute()}; that is {key} of its entry in "
                "DATASETS.FOLDERS, where a relative path starts at the working directory."
            )
    image_files = files_by_stem(images, IMAGE_SUFFIXES)
    label_files = files_by_stem(labels, LABEL_SUFFIXES)
    unpaired = [
        f"{path}: no {partner} of that name"
        for files, others, partner in (
            (image_files, label_files, f"label map in {labels}"),
            (label_files, image_files, f"image in {images}"),
        )
        for stem, path in files.items()
        if stem not in others
    ]
    _raise_for(name, unpaired)
    if not image_files:
        raise CATSegError(f"{name}: no images in {images.absolute()}.")
    return find_pairs(images, labels, LABEL_SUFFIXES)


def _check(name: str, pairs: list[Pair], num_classes: int, ignore_label: int) -> None:
    """Read all label maps, unless they passed before and no file has changed since."""
    stats = [(str(path.absolute()), path.stat()) for pair in pairs for path in pair]
    state = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    digest = hashlib.sha256(repr((state, num_classes, ignore_label)).encode()).hexdigest()
    passed = cache_folder() / "checked_data" / digest
    if passed.exists():
        return
    check = partial(pair_problem, num_classes=num_classes, ignore_label=ignore_label)
    problems = thread_map(check, pairs, desc=f"Checking {name}", unit="file", disable=None)
    _raise_for(name, [problem for problem in problems if problem])
    logger.info("%s: %d images with label maps, all in order", name, len(pairs))
    with atomic_write(passed) as part:
        part.touch()


def _raise_for(name: str, problems: list[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        lines = "\n  ".join(problems[:_SHOWN] + more)
        raise CATSegError(f"{name}: {len(problems)} mistakes in the data:\n  {lines}")

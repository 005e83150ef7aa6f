"""The published splits: one table, and their registration with detectron2's catalogs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from cat_seg.class_lists import class_names
from cat_seg.errors import CATSegError
from cat_seg.palette import NameColors
from cat_seg.plugin.data.datasets.pairs import find_pairs
from cat_seg.resources import user_path


@dataclass(frozen=True)
class Split:
    """One row of the table: where a split lies below the root, and how it is scored."""

    name: str  # registered with detectron2
    title: str  # in tables of results
    images: str  # folder below the root
    labels: str  # folder below the root, made by `python datasets/prepare.py <preparation>`
    vocabulary: str  # names that the model predicts: datasets/<vocabulary>.json
    size: int  # images when complete
    preparation: str
    label_suffix: str = ".png"  # .tif holds 16 bit
    ignore_label: int = 255
    # Where set, these names and "background" are scored. They begin the vocabulary; all that
    # follows them there is background.
    foreground: str = ""

    def scored_names(self) -> list[str]:
        """Return the names of the classes that are scored, fit for people."""
        names = class_names(self.foreground or self.vocabulary)
        return [name.strip() for name in names] + (["background"] if self.foreground else [])


SPLITS = (
    Split(
        name="coco_2017_train_stuff_all_sem_seg",
        title="COCO-Stuff train",
        images="coco-stuff/images/train2017",
        labels="coco-stuff/annotations_detectron2/train2017",
        vocabulary="coco",
        size=118287,
        preparation="coco_stuff",
    ),
    Split(
        name="coco_2017_test_stuff_all_sem_seg",
        title="COCO-Stuff",
        images="coco-stuff/images/val2017",
        labels="coco-stuff/annotations_detectron2/val2017",
        vocabulary="coco",
        size=5000,
        preparation="coco_stuff",
    ),
    Split(
        name="ade20k_full_sem_seg_freq_val_all",
        title="A-847",
        images="ADE20K_2021_17_01/images_detectron2/validation",
        labels="ADE20K_2021_17_01/annotations_detectron2/validation",
        vocabulary="ade847",
        size=2000,
        preparation="ade20k_full",
        label_suffix=".tif",
        ignore_label=65535,
    ),
    Split(
        name="context_459_test_sem_seg",
        title="PC-459",
        images="VOCdevkit/VOC2010/JPEGImages",
        labels="VOCdevkit/VOC2010/annotations_detectron2/pc459_val",
        vocabulary="pc459",
        size=5104,
        preparation="pascal_context_459",
        label_suffix=".tif",
        ignore_label=459,
    ),
    Split(
        name="ade20k_150_test_sem_seg",
        title="A-150",
        images="ADEChallengeData2016/images/validation",
        labels="ADEChallengeData2016/annotations_detectron2/validation",
        vocabulary="ade150",
        size=2000,
        preparation="ade20k_150",
    ),
    Split(
        name="context_59_test_sem_seg",
        title="PC-59",
        images="VOCdevkit/VOC2010/JPEGImages",
        labels="VOCdevkit/VOC2010/annotations_detectron2/pc59_val",
        vocabulary="pc59",
        size=5104,
        preparation="pascal_context_59",
    ),
    Split(
        name="voc_2012_test_sem_seg",
        title="PAS-20",
        images="VOCdevkit/VOC2012/JPEGImages",
        labels="VOCdevkit/VOC2012/annotations_detectron2/val",
        vocabulary="voc20",
        size=1449,
        preparation="voc",
    ),
    Split(
        name="voc_2012_test_background_sem_seg",
        title="PAS-20b",
        images="VOCdevkit/VOC2012/JPEGImages",
        labels="VOCdevkit/VOC2012/annotations_detectron2_bg/val",
        vocabulary="voc20b",
        size=1449,
        preparation="voc",
        foreground="voc20",
    ),
)

# What `--benchmark` takes -> the registered split. A benchmark is named after its vocabulary.
BENCHMARKS = {split.vocabulary: split.name for split in SPLITS if "train" not in split.name}


def benchmark_splits(names: str) -> tuple[str, ...]:
    """Look up benchmarks by their short names.

    Args:
        names: Keys of `BENCHMARKS` or registered names, separated by commas, such as "ade150,pc59".

    Returns:
        The registered names, for DATASETS.TEST.

    Raises:
        CATSegError: if a name is unknown.
    """
    keys = [name.strip() for name in names.split(",")]
    for key in keys:
        if key not in BENCHMARKS and key not in DatasetCatalog.list():
            raise CATSegError(
                f"--benchmark: {key!r} is unknown; expected one or several of "
                f"{', '.join(BENCHMARKS)}, or of registered names, separated by commas."
            )
    return tuple(BENCHMARKS.get(key, key) for key in keys)


def dataset_root() -> Path:
    """Return the folder of all datasets: $DETECTRON2_DATASETS, else ./datasets."""
    return user_path(os.environ.get("DETECTRON2_DATASETS") or "datasets")


def register_all(root: Path | None = None) -> None:
    """Register every split of the table, below `root` (default: `dataset_root()`).

    `MetadataCatalog.get(name)` then holds, beside detectron2's usual entries, `vocabulary` (the
    names that the model is to predict), `num_images` (when complete) and `title`.
    """
    root = root or dataset_root()
    for split in SPLITS:
        names = split.scored_names()
        DatasetCatalog.register(split.name, partial(load_split, split, root))
        MetadataCatalog.get(split.name).set(
            stuff_classes=names,
            stuff_colors=NameColors(tuple(names)),
            vocabulary=class_names(split.vocabulary),
            ignore_label=split.ignore_label,
            evaluator_type="sem_seg_background" if split.foreground else "sem_seg",
            image_root=str(root / split.images),
            sem_seg_root=str(root / split.labels),
            num_images=split.size,
            title=split.title,
        )


def load_split(split: Split, root: Path) -> list[dict[str, str]]:
    """List a split's images in detectron2's format ("file_name", "sem_seg_file_name").

    Raises:
        CATSegError: if a folder is missing or there are no label maps.
    """
    images, labels = root / split.images, root / split.labels
    setting = os.environ.get("DETECTRON2_DATASETS") or "not set (so ./datasets)"
    help_ = (
        f"{split.name} is read from below DETECTRON2_DATASETS, which is {setting}; set it to the "
        f"folder that holds {Path(split.images).parts[0]}, and run "
        f"`python datasets/prepare.py {split.preparation}` if the labels are not prepared yet "
        "(see datasets/README.md)."
    )
    for folder in (images, labels):
        if not folder.is_dir():
            raise CATSegError(f"No folder {folder.absolute()}: {help_}")
    pairs = find_pairs(images, labels, {split.label_suffix})
    if not pairs:
        raise CATSegError(f"No {split.label_suffix} files in {labels.absolute()}: {help_}")
    return [{"file_name": str(p.image), "sem_seg_file_name": str(p.label)} for p in pairs]

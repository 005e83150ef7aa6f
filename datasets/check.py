"""Say what is there of each split, whether it is in order, and what to do next."""

import argparse
import sys
from functools import partial
from pathlib import Path

from preparation import SPLITS, dataset_root
from tqdm.contrib.concurrent import thread_map

from cat_seg.label_rules import LabelRule
from cat_seg.plugin.data.datasets.builtin import Split
from cat_seg.plugin.data.datasets.pairs import (
    IMAGE_SUFFIXES,
    files_by_stem,
    find_pairs,
    pair_problem,
)

_SHOWN = 10  # problems listed for a split


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Datasets are looked for below $DETECTRON2_DATASETS, else ./datasets. Exit code 1 "
        "if something is wrong or incomplete; a split of which nothing is there counts only if "
        "it is named.",
    )
    known = {key for split in SPLITS for key in (split.name, split.preparation)}
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"splits to check, by default all: {', '.join(sorted(known))}",
    )
    names = parser.parse_args().names
    if unknown := sorted(set(names) - known):
        parser.error(f"unknown: {', '.join(unknown)}; expected of {', '.join(sorted(known))}")
    root = dataset_root()
    there = "" if root.is_dir() else ", but there is no such folder; is DETECTRON2_DATASETS right?"
    print(f"Datasets below {root.absolute()}{there}")
    results = [
        check(split, root, named=bool(names))
        for split in SPLITS
        if not names or {split.name, split.preparation} & set(names)
    ]
    return 0 if all(results) else 1


def check(split: Split, root: Path, *, named: bool) -> bool:
    """Print the state of a split; return whether it is as it should be."""
    images, labels = root / split.images, root / split.labels
    print(f"\n{split.name} ({split.title})")
    if not images.is_dir() and not labels.is_dir():
        print(
            f"  not there; next: fetch {images.relative_to(root).parts[0]}, see datasets/README.md"
        )
        return not named
    num_images = len(files_by_stem(images, IMAGE_SUFFIXES)) if images.is_dir() else 0
    pairs = find_pairs(images, labels, {split.label_suffix}) if labels.is_dir() else []
    print(f"  images: {num_images} in {images}")
    print(f"  labels: {len(pairs)} of {split.size} in {labels}")

    with_image = [pair for pair in pairs if pair.image.exists()]
    validate = partial(
        pair_problem,
        rule=LabelRule(len(split.scored_names()), ignore=(split.ignore_label,)),
    )
    missing = [pair for pair in pairs if not pair.image.exists()]
    problems = [f"{pair.label}: no image {pair.image}" for pair in missing]
    found = thread_map(validate, with_image, desc=split.title, unit="file", disable=None)
    problems += [text for text in found if text]
    for text in problems[:_SHOWN]:
        print(f"  WRONG: {text}")
    if len(problems) > _SHOWN:
        print(f"  WRONG: ... and {len(problems) - _SHOWN} more")

    if num_images < split.size:
        print(f"  next: fetch the images ({split.size} in all), see datasets/README.md")
    if len(pairs) < split.size:
        print(f"  next: python datasets/prepare.py {split.preparation}")
    if problems:
        print(
            f"  next: fetch or delete these files; python datasets/prepare.py {split.preparation}"
        )
    in_order = not problems and len(pairs) == split.size
    if in_order:
        print("  complete and in order")
    return in_order


if __name__ == "__main__":
    sys.exit(main())

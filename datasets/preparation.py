"""What the preparation scripts share: a script turns a dataset into `Work`, one a label map."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone need not be installed

from cat_seg.label_maps import read_label_map, write_label_map
from cat_seg.plugin.data.datasets.builtin import SPLITS, dataset_root
from cat_seg.plugin.data.work import Skip, Summary, Work, run


class LabelTable:
    """Map the labels of a dataset's own files to training labels.

    Args:
        table: Training label of each label.
        other: Training label of all others; without it, another label is an error.
    """

    def __init__(self, table: Mapping[int, int], other: int | None = None) -> None:
        self._lookup = np.full(1 << 16, -1 if other is None else other, dtype=np.int32)
        self._lookup[list(table)] = list(table.values())

    def __call__(self, labels: np.ndarray) -> np.ndarray:
        """Map labels, (H, W) integers -> (H, W) of int32.

        Raises:
            ValueError: if there is a label that the table does not know.
        """
        known = (labels >= 0) & (labels < len(self._lookup))
        mapped = np.where(known, self._lookup[np.where(known, labels, 0)], -1)
        if (mapped < 0).any():
            values = ", ".join(map(str, np.unique(labels[mapped < 0])[:5]))
            raise ValueError(f"unknown label {values}")
        return mapped


def convert_folder(title: str, source: Path, output: Path, table: LabelTable) -> Summary:
    """Map every PNG of `source` to one of the same name in `output`."""
    needed(source)
    paths = sorted(source.iterdir())
    masks = [p for p in paths if p.suffix.lower() == ".png" and not p.name.startswith(".")]
    summary = run(title, [mask_work(path, output / f"{path.stem}.png", table) for path in masks])
    if strays := [path.name for path in paths if path not in set(masks)]:
        summary.skipped["no PNG"] += strays
    if not masks:
        summary.wrong["no PNG in this folder"].append(str(source))
    return summary


def mask_work(source: Path, output: Path, table: LabelTable, *, drop_empty: bool = False) -> Work:
    """Describe the work of mapping one mask to 8 bit; `drop_empty` skips those that are all 255."""

    def make() -> None:
        labels = table(read_label_map(source)).astype(np.uint8)
        if drop_empty and (labels == 255).all():
            raise Skip("nothing but ignored pixels")
        write_label_map(output, labels)

    return Work(source.name, (output,), make, (source,))


def needed(path: Path) -> Path:
    """Return the path of a source.

    Raises:
        ValueError: if it is not there.
    """
    if not path.exists():
        raise ValueError(f"{path.absolute()} is missing; datasets/README.md says where to get it")
    return path


def read_list(path: Path) -> list[str]:
    """Read a list of ids, one a line, whatever the line ends.

    Raises:
        ValueError: if it is missing or empty.
    """
    ids = needed(path).read_text(encoding="utf-8-sig").split()
    if not ids:
        raise ValueError(f"{path.absolute()} is empty; expected one id a line")
    return ids


def split_folders(root: Path, name: str) -> tuple[Path, Path]:
    """Return the folders of images and of prepared label maps of a registered split."""
    split = next(split for split in SPLITS if split.name == name)
    return root / split.images, root / split.labels


def main(prepare: Callable[[Path], list[Summary]], description: str | None) -> int:
    """Run a script; return its exit code."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Datasets are looked for below $DETECTRON2_DATASETS, else ./datasets.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args()
    return run_all({"": prepare})


def run_all(preparations: Mapping[str, Callable[[Path], list[Summary]]]) -> int:
    """Run preparations by name, printing what each did; 1 if anything was wrong, else 0."""
    code = 0
    for name, prepare in preparations.items():
        try:
            for summary in prepare(dataset_root()):
                print(summary)
                code |= bool(summary.wrong)
        except (OSError, ValueError) as error:
            print(f"{name}: {error}".removeprefix(": "))
            code = 1
        except KeyboardInterrupt:
            print("Interrupted; the same command goes on from here.")
            return 130
    return code

"""ADE20K with 150 classes: label 0 is ignored, k becomes k - 1."""

import sys
from pathlib import Path

from preparation import LabelTable, Summary, convert_folder, main, split_folders

TABLE = LabelTable({0: 255} | {label: label - 1 for label in range(1, 151)})


def prepare(root: Path) -> list[Summary]:
    _, output = split_folders(root, "ade20k_150_test_sem_seg")
    source = root / "ADEChallengeData2016/annotations/validation"
    return [convert_folder("ADE-150", source, output, TABLE)]


if __name__ == "__main__":
    sys.exit(main(prepare, __doc__))

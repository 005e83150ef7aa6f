"""The only reader of datasets/*.json: class names, label ids and published figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cat_seg.resources import project_file


def class_names(vocabulary: str) -> list[str]:
    """Returns the names of datasets/<vocabulary>.json in training order, synonyms and all."""
    return read_names(project_file(f"datasets/{vocabulary}.json"))


def label_ids(vocabulary: str) -> list[int]:
    """Returns the id that each class has in the data set's own label maps, in training order."""
    return json.loads(project_file(f"datasets/{vocabulary}_ids.json").read_text())


def published_results() -> list[dict[str, Any]]:
    """Returns the paper's models, each with its mIoU by the name of the registered split."""
    return json.loads(project_file("datasets/published.json").read_text())


def read_names(path: str | Path) -> list[str]:
    """Reads a JSON list of class names.

    Raises:
        ValueError: if the file is missing or holds anything but a list of distinct names.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a JSON list of class names.")
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); expected a list of class names.") from error
    if not isinstance(names, list) or not names:
        raise ValueError(f'{path}: expected a list of class names, as in ["cat", "sofa, couch"].')
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{path}: entry {index} is {name!r}; expected a class name.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path}: named twice: {', '.join(twice)}; classes must be distinct.")
    return names


def palette(count: int) -> list[tuple[int, int, int]]:
    """Returns `count` distinct RGB colours, in the order of PASCAL VOC's without its black.

    The bits of an index are dealt to red, green and blue in turn, most significant first.
    """
    return [
        (_every_third_bit(index), _every_third_bit(index >> 1), _every_third_bit(index >> 2))
        for index in range(1, count + 1)
    ]


def _every_third_bit(value: int) -> int:
    return sum((value >> 3 * place & 1) << 7 - place for place in range(8))

"""What an importer returns, and what importers share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from cat_seg.errors import CATSegError
from cat_seg.plugin.data.datasets.pairs import IMAGE_SUFFIXES


class Imported(NamedTuple):
    """What a source holds."""

    names: list[str]
    # Name of the label map below the output, without suffix -> draws it: (H, W), IGNORED where
    # there is no class.
    draw: Mapping[str, Callable[[], np.ndarray]]
    options: Mapping[str, Any] = {}  # keys of DATASETS.FOLDERS that go with it
    files: Mapping[str, Path] = {}  # what a label map is drawn from, if not from the source itself


def read_json(path: Path) -> Any:
    """Read a file of JSON, however large.

    Raises:
        CATSegError: naming the file, if it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CATSegError(f"{path}: cannot be read as JSON ({error})") from error


def inside(name: str) -> str:
    """A name that a file brings, if it stays below the folder that it is put into.

    Raises:
        CATSegError: if it does not.
    """
    path = PurePosixPath(str(name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
        raise CATSegError(f"the file name {name!r:.100} leads out of its folder")
    return str(path)


def stem(name: str) -> str:
    """A file's name without the suffix of an image or a JSON."""
    path = PurePosixPath(name)
    known = path.suffix.lower() in IMAGE_SUFFIXES | {".json"}
    return str(path.with_suffix("")) if known else name


def paste(bitmap: np.ndarray, origin: Sequence[float], height: int, width: int) -> np.ndarray:
    """Put a bitmap (h, w) bool where its origin is, x and y: (H, W) bool.

    Raises:
        CATSegError: if that is outside the picture.
    """
    left, top = (int(value) for value in origin)
    if left < 0 or top < 0:
        raise CATSegError(f"a bitmap begins at {left}, {top}, outside of the picture")
    region = np.zeros((height, width), bool)
    place = region[top : top + bitmap.shape[0], left : left + bitmap.shape[1]]
    place[:] = bitmap[: place.shape[0], : place.shape[1]]
    return region

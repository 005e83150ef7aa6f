"""The only reader of the class lists that ship: datasets/*.json, label ids, published figures."""

from __future__ import annotations

import json
from typing import Any

from cat_seg.resources import resource

# Names of the class lists that ship, as `Vocabulary.read` takes them.
PUBLISHED = (
    *("ade150", "ade847", "coco", "pc59", "pc459", "voc20", "voc20b"),
    *("cityscapes", "mapillary", "pascal_part_116", "ade_part_234"),
    *("synthetic", "synthetic_seen"),
)


def class_names(vocabulary: str) -> list[str]:
    """Return the names of datasets/<vocabulary>.json in training order, synonyms and all."""
    names: list[str] = _read_json(f"{vocabulary}.json")
    return names


def label_ids(vocabulary: str) -> list[int]:
    """Return the id that each class has in the data set's own label maps, in training order."""
    ids: list[int] = _read_json(f"{vocabulary}_ids.json")
    return ids


def published_results() -> list[dict[str, Any]]:
    """Return the paper's models, each with its mIoU by the name of the registered split."""
    results: list[dict[str, Any]] = _read_json("published.json")
    return results


def _read_json(name: str) -> Any:
    return json.loads(resource(f"datasets/{name}").read_text(encoding="utf-8"))

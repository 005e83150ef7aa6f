"""The vocabulary that belongs to a registered dataset."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from cat_seg.errors import CATSegError
from cat_seg.resources import project_file
from cat_seg.vocabulary import Vocabulary


def dataset_names(name: str) -> list[str] | None:
    """Names that a model is to predict on a dataset: its "vocabulary", else "stuff_classes"."""
    metadata = MetadataCatalog.get(name)
    names = metadata.get("vocabulary", None) or metadata.get("stuff_classes", None)
    return list(names) if names else None


def vocabulary_of(class_json: str, datasets: Sequence[str]) -> list[str]:
    """Class names of a file, else of the first dataset.

    Raises:
        CATSegError: if neither is there.
    """
    if class_json:
        return Vocabulary.read(project_file(class_json)).strings
    for name in datasets[:1]:
        if names := dataset_names(name):
            return names
    raise CATSegError(
        f"No class names: the datasets are {list(datasets)}, none of them with names, and "
        "TRAIN_CLASS_JSON or TEST_CLASS_JSON under MODEL.SEM_SEG_HEAD is empty. Name a JSON list."
    )

"""The vocabulary of a registered dataset, and of several that are trained on together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from cat_seg.errors import CATSegError
from cat_seg.resources import project_file
from cat_seg.vocabulary import Vocabulary, split_synonyms


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
        if name not in DatasetCatalog.list():
            raise CATSegError(
                f"DATASETS names {name!r}, which is not registered; expected one of "
                f"{', '.join(sorted(DatasetCatalog.list()))}, or a NAME of DATASETS.FOLDERS."
            )
    raise CATSegError(
        f"No class names: the datasets are {list(datasets)}, none of them with names, and "
        "TRAIN_CLASS_JSON or TEST_CLASS_JSON under MODEL.SEM_SEG_HEAD is empty. Name a JSON list."
    )


class JointVocabulary(NamedTuple):
    """The classes of several data sets together."""

    names: list[str]  # T of them, the synonyms of one separated by ", "
    classes: list[list[int]]  # of each data set: the class that each of its own became


def training_vocabulary(class_json: str, datasets: Sequence[str]) -> JointVocabulary:
    """The vocabulary of DATASETS.TRAIN.

    Args:
        class_json: TRAIN_CLASS_JSON; if not empty, its names are the classes of every data set.
        datasets: registered names.

    Raises:
        CATSegError: if there are no names.
    """
    if class_json or len(datasets) < 2:
        names = vocabulary_of(class_json, datasets)
        return JointVocabulary(names, [list(range(len(names)))] * max(1, len(datasets)))
    return unite([vocabulary_of("", [name]) for name in datasets])


def unite(vocabularies: Sequence[Sequence[str]]) -> JointVocabulary:
    """Unite vocabularies by name.

    A class is one that is there already if it has the same first name, else if they share any
    name; it then brings its other synonyms along, unless another class has them. Two classes of one
    vocabulary stay two, whatever they are called. So the first vocabulary keeps its indices.
    """
    names: list[list[str]] = []  # of each class, as they are written
    classes = []
    for vocabulary in vocabularies:
        taken: set[int] = set()
        own = []
        for text in vocabulary:
            synonyms = split_synonyms(text)
            index = _find(synonyms, names, taken)
            if index is None:
                index = len(names)
                names.append(synonyms)
            else:
                known = {_key(name) for of_class in names for name in of_class}
                names[index] = names[index] + [n for n in synonyms if _key(n) not in known]
            taken.add(index)
            own.append(index)
        classes.append(own)
    return JointVocabulary([", ".join(of_class) for of_class in names], classes)


def _find(synonyms: list[str], names: list[list[str]], taken: set[int]) -> int | None:
    """Find the class that a class with these names is."""
    wanted = {_key(name) for name in synonyms}
    free = [i for i in range(len(names)) if i not in taken]
    first = (i for i in free if _key(names[i][0]) == _key(synonyms[0]))
    shared = (i for i in free if wanted & {_key(name) for name in names[i]})
    return next(first, next(shared, None))


def _key(name: str) -> str:
    return " ".join(name.casefold().split())

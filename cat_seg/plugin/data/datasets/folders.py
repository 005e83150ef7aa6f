"""Your own data: a folder of images, a folder of label maps, and names for their classes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from cat_seg.class_lists import PUBLISHED
from cat_seg.errors import CATSegError
from cat_seg.label_rules import LabelRule, parse_rule
from cat_seg.palette import NameColors
from cat_seg.plugin.data.datasets.builtin import SPLITS
from cat_seg.plugin.data.datasets.census import Census, take_census
from cat_seg.plugin.data.datasets.pairs import Matched, match_files, read_split
from cat_seg.resources import user_file, user_path
from cat_seg.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

NEEDED = ("NAME", "IMAGES", "LABELS", "CLASSES")
OPTIONS = (  # docs/data.md explains them
    "IMAGE_SUFFIX", "LABEL_SUFFIX", "LIST", "IGNORE", "OFFSET", "MAP", "PALETTE", "UNLABELLED",
)  # fmt: skip
# What an ignored pixel teaches in training: that none of the set's classes is there, as published,
# or nothing.
UNLABELLED = ("none of these", "nothing")
_SHOWN = 10  # problems listed in an error


@dataclass(frozen=True)
class FolderData:
    """One entry of DATASETS.FOLDERS, understood.

    Attributes:
        name: registered with detectron2.
        images, labels: folders.
        vocabulary: the names of each class.
        rule: what the labels mean.
        image_suffix, label_suffix: see `match_files`.
        split: a file of names, or None for all that are there.
        unlabelled: one of `UNLABELLED`.
        origin: what its folders are, for messages.
    """

    name: str
    images: Path
    labels: Path
    vocabulary: Vocabulary
    rule: LabelRule
    image_suffix: str = ""
    label_suffix: str = ""
    split: Path | None = None
    unlabelled: str = UNLABELLED[0]
    origin: str = (
        "that is {key} of its entry in DATASETS.FOLDERS, where a relative path starts at the "
        "working directory, or at the folder of the YAML"
    )

    @classmethod
    def parse(cls, entry: Any, base: Path | None = None) -> FolderData:
        """Understand an entry.

        Args:
            entry: {NAME, IMAGES, LABELS, CLASSES} and any of `OPTIONS`.
            base: folder of the YAML that holds it; a relative path may start there, or at the
                working directory.

        Raises:
            CATSegError: if a key is missing, unknown or wrong, or the names cannot be read.
        """
        keys = set(entry) if isinstance(entry, Mapping) else set()
        if not set(NEEDED) <= keys <= set(NEEDED) | set(OPTIONS):
            raise CATSegError(
                f"DATASETS.FOLDERS: expected entries {{{', '.join(NEEDED)}}} and any of "
                f"{', '.join(OPTIONS)}; got {entry}."
            )
        name = entry["NAME"]
        if not isinstance(name, str) or not name:
            raise CATSegError(f"DATASETS.FOLDERS: NAME is {name!r}; expected a name.")
        if not re.fullmatch(r"\w[\w .+-]{0,99}", name):  # results go into a folder of this name
            raise CATSegError(
                f"DATASETS.FOLDERS: NAME is {name!r}; expected at most 100 letters, digits, blanks "
                "and any of _ . + -: it is no path."
            )
        if name in {split.name for split in SPLITS}:
            raise CATSegError(
                f"DATASETS.FOLDERS: {name} is a published split; choose another NAME."
            )
        vocabulary = _vocabulary(entry["CLASSES"], base)
        unlabelled = str(entry.get("UNLABELLED", UNLABELLED[0])).lower()
        if unlabelled not in UNLABELLED:
            raise CATSegError(
                f"{name}: UNLABELLED is {entry['UNLABELLED']!r}; expected one of "
                f"{', '.join(map(repr, UNLABELLED))}."
            )
        return cls(
            name=name,
            images=_path(entry["IMAGES"], base),
            labels=_path(entry["LABELS"], base),
            vocabulary=vocabulary,
            rule=parse_rule(name, entry, vocabulary.strings, vocabulary.index),
            image_suffix=str(entry.get("IMAGE_SUFFIX") or ""),
            label_suffix=str(entry.get("LABEL_SUFFIX") or ""),
            split=_path(entry["LIST"], base) if entry.get("LIST") else None,
            unlabelled=unlabelled,
        )

    def match(self) -> Matched:
        """Find the images and label maps.

        Raises:
            CATSegError: if a folder or the list is missing, or there are no images at all.
        """
        for key, folder in (("IMAGES", self.images), ("LABELS", self.labels)):
            if not folder.is_dir():
                origin = self.origin.format(key=key)
                raise CATSegError(f"{self.name}: no folder {folder.absolute()}; {origin}.")
        found = match_files(
            self.images,
            self.labels,
            image_suffix=self.image_suffix,
            label_suffix=self.label_suffix,
            listed=read_split(self.split) if self.split else None,
        )
        if not found.pairs and not found.problems:
            raise CATSegError(f"{self.name}: no images in {self.images.absolute()}.")
        return found

    def census(self) -> Census:
        """Count the data, with every mistake among its problems."""
        found = self.match()
        counted = take_census(self.name, self.vocabulary.strings, found.pairs, self.rule)
        counted.problems[:0] = found.problems
        return counted

    def load(self) -> list[dict[str, str]]:
        """List the images in detectron2's format, once they are found to be in order.

        Raises:
            CATSegError: naming every mistake.
        """
        found = self.match()
        _raise_for(self.name, found.problems)
        census = take_census(self.name, self.vocabulary.strings, found.pairs, self.rule)
        hints = [f"Maybe: {text}" for text in census.smells(self.rule)]
        _raise_for(self.name, census.problems, hints)
        logger.info("%s", census.summary())
        for text in census.smells(self.rule):
            logger.warning("%s: %s", self.name, text)
        return [{"file_name": str(p.image), "sem_seg_file_name": str(p.label)} for p in found.pairs]

    def register(self) -> None:
        """Register it with detectron2's catalogs; one of the same name is replaced."""
        if self.name in DatasetCatalog.list():
            DatasetCatalog.remove(self.name)
            MetadataCatalog.remove(self.name)
        names = self.vocabulary.strings
        DatasetCatalog.register(self.name, cache(self.load))
        MetadataCatalog.get(self.name).set(
            stuff_classes=names,
            stuff_colors=NameColors(tuple(names)),
            vocabulary=names,
            ignore_label=next((v for v in self.rule.ignore if v >= len(names)), 255),
            label_rule=self.rule,
            unlabelled=self.unlabelled,
            evaluator_type="sem_seg",
            image_root=str(self.images),
            sem_seg_root=str(self.labels),
        )


def register_folders(cfg: CfgNode, base: Path | None = None) -> None:
    """Register every entry of DATASETS.FOLDERS, so that DATASETS.TRAIN and TEST may name it.

    The data is checked when it is first asked for (`DatasetCatalog.get`), as `FolderData.load`
    says.

    Raises:
        CATSegError: if an entry is wrong (see `FolderData.parse`), or two have one NAME.
    """
    entries = [FolderData.parse(entry, base) for entry in cfg.DATASETS.FOLDERS]
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise CATSegError(
                f"DATASETS.FOLDERS has {names.count(name)} entries of NAME {name}; give each "
                "another."
            )
    for entry in entries:
        entry.register()


def _vocabulary(classes: Any, base: Path | None) -> Vocabulary:
    """Return names from a list, a file, or a published list by its name."""
    if not isinstance(classes, str | Path):
        return Vocabulary.parse(classes)
    place = _path(classes, base)
    if not place.exists() and str(classes) not in PUBLISHED:
        place = user_file(classes)
    return Vocabulary.read(place)


def _path(path: Any, base: Path | None) -> Path:
    """Return a user's path: relative to the working directory, else to the YAML that names it."""
    place = user_path(path)
    if base is not None and not place.exists() and (base / place).exists():
        return base / place
    return place


def _raise_for(name: str, problems: list[str], hints: list[str] | None = None) -> None:
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        lines = "\n  ".join([*problems[:_SHOWN], *more, *(hints or [])])
        raise CATSegError(f"{name}: {len(problems)} mistakes in the data:\n  {lines}")

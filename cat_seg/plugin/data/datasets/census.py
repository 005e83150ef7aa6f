"""What a data set holds, counted: pixels of each class, what is ignored, and what smells wrong.

The count of data that has not changed since is kept, so that only the first start reads it all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.contrib.concurrent import thread_map

from cat_seg.errors import CATSegError
from cat_seg.label_maps import image_size, read_colors
from cat_seg.label_rules import IGNORED, LabelRule
from cat_seg.plugin.data.datasets.pairs import Pair, size_problem
from cat_seg.trust.text import read_text
from cat_seg.utils.files import atomic_write, cache_folder

logger = logging.getLogger(__name__)

_VERSION = 1  # of kept counts
_VALUES = 256  # different values that are kept of a label map
_SHOWN = 8  # names in a sentence


@dataclass
class Census:
    """The counts of a data set.

    Attributes:
        name: of the data set.
        classes: names of its K classes.
        images: pairs of image and label map that were counted.
        smallest, largest: height and width of the images with the fewest and the most pixels.
        pixels: of each class.
        images_of: images that show each class.
        ignored: pixels of no class.
        blank: images without a pixel of any class.
        values: pixels of each value that the label maps hold, the most frequent ones.
        unknown: pixels of values that are no class and not ignored.
        colors: how often the first colours of label maps occur that are pictures in colour.
        problems: mistakes, each naming its file.
    """

    name: str
    classes: list[str]
    images: int = 0
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)
    pixels: list[int] = field(default_factory=list)
    images_of: list[int] = field(default_factory=list)
    ignored: int = 0
    blank: int = 0
    values: dict[int, int] = field(default_factory=dict)
    unknown: dict[int, int] = field(default_factory=dict)
    colors: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def ignored_share(self) -> float:
        """Share of pixels of no class, 0 to 1."""
        return self.ignored / max(1, self.ignored + sum(self.pixels))

    @property
    def missing(self) -> list[str]:
        """Names that no pixel has."""
        return [name for name, count in zip(self.classes, self.pixels, strict=True) if not count]

    def summary(self) -> str:
        """Tell it in a line."""
        seen = len(self.classes) - len(self.missing)
        return (
            f"{self.name}: {self.images} images with label maps, {seen} of {len(self.classes)} "
            f"classes occur, {self.ignored_share:.1%} of pixels ignored"
        )

    def smells(self, rule: LabelRule) -> list[str]:
        """Tell what is allowed but looks like a mistake, a sentence each."""
        found = []
        values, total = set(self.values), len(self.classes)
        highest = max((v for v in values - set(rule.ignore) if v not in self.unknown), default=-1)
        plain = rule.mapping is None and rule.offset == 0
        if plain and values == {0, 255} and 255 in rule.ignore:
            found.append(
                "the label maps hold 0 and 255 alone, and 255 is ignored, so that a single class "
                f"is left ({self.classes[0]!r}). If 255 is a class, say so: MAP: {{0: 0, 255: 1}}."
            )
        elif self.images and total > 1 and total - len(self.missing) == 1:
            only = next(name for name in self.classes if name not in self.missing)
            found.append(f"one class alone occurs, {only!r}; every figure would be 100 %.")
        if plain and 0 in values and total in self.unknown and highest < total:
            found.append(
                f"a label equals the number of classes, {total}: if labels count from 1 and 0 is "
                "unlabelled, say OFFSET: 1; if 0 is a class, a name is missing."
            )
        if self.images and not any(self.pixels):
            found.append("every pixel is ignored; IGNORE, MAP or OFFSET cannot be right.")
        elif self.blank:
            found.append(f"{self.blank} of {self.images} images have no pixel of any class.")
        if self.ignored_share > 0.5 and any(self.pixels):
            found.append(f"{self.ignored_share:.0%} of all pixels are ignored.")
        if self.colors:
            common = ", ".join(f'"{color}"' for color in list(self.colors)[:_SHOWN])
            found.append(
                f"label maps are pictures in colour; if colours are classes, say so: PALETTE: "
                f"[{common}{', ...' if len(self.colors) > _SHOWN else ''}], in the order of the "
                "classes."
            )
        if self.images and self.missing and total > 1:
            some = ", ".join(self.missing[:_SHOWN])
            more = ", ..." if len(self.missing) > _SHOWN else ""
            found.append(f"{len(self.missing)} names never occur: {some}{more}.")
        return found


def take_census(
    name: str, classes: Sequence[str], pairs: Sequence[Pair], rule: LabelRule
) -> Census:
    """Count a data set, or return the count of the same files with the same rule.

    Only a data set without mistakes is kept for next time.
    """
    stats = [(str(path.absolute()), path.stat()) for pair in pairs for path in pair]
    state = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    key = repr((_VERSION, state, list(classes), dataclasses.astuple(rule)))
    kept = f"{_sha256(key)[:32]}.json"
    if (census := _read(kept)) is not None:
        census.name = name
        return census
    scans = thread_map(
        partial(_scan, rule=rule), pairs, desc=f"Checking {name}", unit="file", disable=None
    )
    census = _sum(name, classes, scans, rule)
    if not census.problems:
        try:
            text = json.dumps(dataclasses.asdict(census))
            with atomic_write(_folder() / kept) as part:
                part.write_text(f"{_sha256(text)}\n{text}", encoding="utf-8")
        except (OSError, CATSegError) as error:
            logger.warning("The count of %s is not kept for next time: %s", name, error)
    return census


@dataclass
class _Scan:
    """What one pair holds."""

    size: tuple[int, int] = (0, 0)
    values: dict[int, int] = field(default_factory=dict)
    colors: list[int] = field(default_factory=list)
    problem: str | None = None


def _scan(pair: Pair, rule: LabelRule) -> _Scan:
    try:
        size = image_size(pair.image)
    except CATSegError as error:
        return _Scan(problem=str(error))
    try:
        values = rule.read_values(pair.label)
    except CATSegError as error:
        return _Scan(problem=str(error), colors=_colors(pair))
    if problem := size_problem(pair, size, values.shape):
        return _Scan(problem=problem)
    counts = _counts(values)
    wrong = sorted(value for value in counts if rule.class_of(value) is None)
    problem = None
    if wrong:
        try:
            rule.apply(np.array([wrong]))
        except CATSegError as error:
            problem = f"{pair.label}: {error}"
    return _Scan(size, counts, problem=problem)


def _sum(name: str, classes: Sequence[str], scans: Sequence[_Scan], rule: LabelRule) -> Census:
    census = Census(name, list(classes), pixels=[0] * len(classes), images_of=[0] * len(classes))
    values: Counter[int] = Counter()
    colors: Counter[str] = Counter()
    sizes = []
    for scan in scans:
        census.problems += [scan.problem] if scan.problem else []
        colors.update(_hex(color) for color in scan.colors)
        if not scan.values:
            continue
        census.images += 1
        sizes.append(scan.size)
        values.update(scan.values)
        seen = set()
        for value, count in scan.values.items():
            label = rule.class_of(value)
            if label is None:
                census.unknown[value] = census.unknown.get(value, 0) + count
            elif label == IGNORED:
                census.ignored += count
            else:
                census.pixels[label] += count
                seen.add(label)
        for label in seen:
            census.images_of[label] += 1
        census.blank += not seen
    census.values = dict(values.most_common(_VALUES))
    census.colors = dict(colors.most_common(_VALUES))
    if sizes:
        by_area = sorted(sizes, key=lambda size: size[0] * size[1])
        census.smallest, census.largest = by_area[0], by_area[-1]
    return census


def _hex(color: int) -> str:
    return f"#{color:06x}"


def _counts(values: np.ndarray) -> dict[int, int]:
    if values.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values.reshape(-1))
        found = np.flatnonzero(counts)
        return dict(zip(found.tolist(), counts[found].tolist(), strict=True))
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _colors(pair: Pair) -> list[int]:
    """Return the colours of a label map that is a picture in colour, if they are few."""
    try:
        found = np.unique(read_colors(pair.label))
    except CATSegError:
        return []
    return found.tolist() if len(found) <= _VALUES else []


def _folder() -> Path:
    return cache_folder() / "census"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(name: str) -> Census | None:
    """A census that was kept, if it is there and as it was written."""
    try:
        digest, _, text = read_text(_folder() / name).partition("\n")
    except CATSegError:
        return None
    if digest != _sha256(text):
        return None
    content = json.loads(text)
    for key in ("values", "unknown"):
        content[key] = {int(value): count for value, count in content[key].items()}
    for key in ("smallest", "largest"):
        content[key] = tuple(content[key])
    return Census(**content)

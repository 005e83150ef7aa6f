"""What the values of label maps mean: one rule for every use of a data set.

A label map has one value a pixel: an integer, or a colour. H and W in pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cat_seg.errors import CATSegError
from cat_seg.label_maps import read_colors, read_label_map

_TABLE = 1 << 16  # values that are looked up in a table; others one by one
IGNORED = -1  # the class of pixels that belong to none
NOTHING = -1000  # in training, the label of pixels that teach nothing; a stray -1 stays a mistake


@dataclass(frozen=True)
class LabelRule:
    """What the values of a data set's label maps mean.

    A value in `mapping` is that class; else one in `ignore` is none; else value k is class
    k - `offset`, and those below `offset` are none. With a mapping, other values than these are
    `other`.

    Attributes:
        num_classes: classes are 0 to num_classes - 1; None where their number is not known.
        ignore: values of pixels that belong to no class.
        offset: value of class 0.
        mapping: class of a value, or IGNORED.
        other: class of values that `mapping` lacks: IGNORED, or None where they are mistakes.
        colors: values are colours, as 0xRRGGBB.
    """

    num_classes: int | None = None
    ignore: tuple[int, ...] = (255,)
    offset: int = 0
    mapping: tuple[tuple[int, int], ...] | None = None
    other: int | None = None
    colors: bool = False

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LabelRule:
        """Make a rule of the fields of one (`dataclasses.asdict`), once they went through JSON.

        Raises:
            CATSegError: if they are none.
        """
        fields = dict(values)
        try:
            fields["ignore"] = tuple(map(int, fields["ignore"]))
            if fields["mapping"] is not None:
                fields["mapping"] = tuple((int(value), int(k)) for value, k in fields["mapping"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise CATSegError(f"{values!r:.80} is no rule of labels ({error})") from error

    def read(self, path: str | Path) -> np.ndarray:
        """Read a label map's classes: (H, W) int32, IGNORED where there is none.

        Raises:
            CATSegError: naming the file, if it cannot be read, or holds a value of no class.
        """
        try:
            return self.apply(self.read_values(path))
        except CATSegError as error:
            raise error if str(path) in str(error) else CATSegError(f"{path}: {error}") from error

    def read_values(self, path: str | Path) -> np.ndarray:
        """Read a label map's values: (H, W) integers, of colours 0xRRGGBB.

        Raises:
            CATSegError: naming the file, if it cannot be read.
        """
        return read_colors(path) if self.colors else read_label_map(path)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return the classes (H, W) int32 of values (H, W).

        Raises:
            CATSegError: if a value belongs to no class and is not ignored.
        """
        if values.dtype == np.uint8 or (values.dtype == np.uint16 and not self.colors):
            classes: np.ndarray = self._table[values]
            wrong = values[classes < IGNORED]
        else:
            found, inverse = np.unique(values, return_inverse=True)
            known = [self.class_of(int(value)) for value in found]
            table = np.array([IGNORED - 1 if c is None else c for c in known], np.int32)
            classes = table[inverse].reshape(values.shape)
            wrong = found[table < IGNORED]
        if wrong.size:
            raise CATSegError(f"label {self.shown(np.unique(wrong))} is {self._expectation}")
        return classes

    def class_of(self, value: int) -> int | None:
        """Return the class of a value, IGNORED if it is of none, or None if it is a mistake."""
        if self.mapping is not None and value in self._mapping:
            return self._mapping[value]
        if value in self.ignore:
            return IGNORED
        if self.mapping is not None:
            return self.other
        if value < 0 or (self.num_classes is not None and value >= self.offset + self.num_classes):
            return None
        return max(value - self.offset, IGNORED)

    def shown(self, values: Sequence[int] | np.ndarray) -> str:
        """Write values for people, the first few of many."""
        some = [f"#{int(v):06x}" if self.colors else str(v) for v in values[:5]]
        return ", ".join(some) + (", ..." if len(values) > 5 else "")

    @cached_property
    def _mapping(self) -> dict[int, int]:
        return dict(self.mapping or ())

    @cached_property
    def _table(self) -> np.ndarray:
        known = (self.class_of(value) for value in range(_TABLE))
        return np.array([IGNORED - 1 if c is None else c for c in known], np.int32)

    @property
    def _expectation(self) -> str:
        ignored = f", or {self.shown(self.ignore)} to ignore" if self.ignore else ""
        if self.mapping is not None:
            what = "PALETTE" if self.colors else "MAP"
            return f"not in {what}; add it, or `other: ignore`{ignored and ', expected' + ignored}"
        last = "" if self.num_classes is None else self.offset + self.num_classes - 1
        return f"out of range; expected {self.offset} to {last}{ignored}"


def parse_rule(
    name: str, options: Mapping[str, Any], class_names: Sequence[str], index: Callable[[str], int]
) -> LabelRule:
    """Understand IGNORE, OFFSET, MAP and PALETTE of a data set.

    Args:
        name: of the data set, for messages.
        options: IGNORE, a value or several (255 by default); OFFSET, the value of the first class;
            MAP, {value: class}; PALETTE, {colour: class}, or colours in the order of the classes.
            A class is its index, its name or "ignore"; a colour "#rrggbb" or "r, g, b". The key
            "other" stands for all that is not named.
        class_names: of the data set.
        index: the class of a name.

    Raises:
        CATSegError: naming the key that is wrong.
    """

    def class_of(key: str, value: Any) -> int:
        if value is None or (isinstance(value, str) and value.lower() == "ignore"):
            return IGNORED
        if isinstance(value, str):
            return index(value)
        if isinstance(value, int) and 0 <= value < len(class_names):
            return value
        raise CATSegError(
            f"{name}: {key} has the class {value!r}; expected one of 0 to {len(class_names) - 1}, "
            'a name, or "ignore".'
        )

    table, palette = options.get("MAP"), options.get("PALETTE")
    if table is not None and palette is not None:
        raise CATSegError(f"{name}: MAP and PALETTE are both given; expected one of them.")
    key, pairs = ("PALETTE", palette) if palette is not None else ("MAP", table)
    if isinstance(pairs, list | tuple) and palette is not None:
        pairs = {_color_key(color): k for k, color in enumerate(pairs)}
    if pairs is not None and not isinstance(pairs, Mapping):
        raise CATSegError(f"{name}: {key} is {pairs!r:.80}; expected values and their classes.")
    read = _color if palette is not None else _integer
    ignore = options.get("IGNORE", () if palette is not None else 255)
    ignore = tuple(
        read(name, "IGNORE", value)
        for value in (ignore if isinstance(ignore, list | tuple) else [ignore])
    )
    mapping, other = None, None
    if pairs is not None:
        rest = {str(k).lower(): v for k, v in pairs.items() if str(k).lower() == "other"}
        other = class_of(key, rest["other"]) if rest else None
        mapping = tuple(
            (read(name, key, value), class_of(key, of_value))
            for value, of_value in pairs.items()
            if str(value).lower() != "other"
        )
    rule = LabelRule(
        num_classes=len(class_names),
        ignore=ignore,
        offset=_integer(name, "OFFSET", options.get("OFFSET", 0)),
        mapping=mapping,
        other=other,
        colors=palette is not None,
    )
    if rule.offset and mapping is not None:
        raise CATSegError(f"{name}: OFFSET has no meaning beside {key}; leave it out.")
    for value in ignore if mapping is None else ():
        if 0 <= (k := value - rule.offset) < len(class_names):
            raise CATSegError(
                f"{name}: the ignore label {value} is also the label of {class_names[k]!r}; choose "
                f"one that is not below {len(class_names) + rule.offset}."
            )
    return rule


def _integer(name: str, key: str, value: Any) -> int:
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (TypeError, ValueError) as error:
        raise CATSegError(f"{name}: {key} has {value!r:.80}; expected an integer.") from error


def _color(name: str, key: str, value: Any) -> int:
    """Return a colour as 0xRRGGBB."""
    text = _color_key(value)
    if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        return int(text[1:], 16)
    parts = re.findall(r"\d+", text)
    if len(parts) != 3 or any(int(part) > 255 for part in parts):
        raise CATSegError(
            f'{name}: {key} has the colour {value!r:.80}; expected "#rrggbb" or "r, g, b".'
        )
    red, green, blue = map(int, parts)
    return red << 16 | green << 8 | blue


def _color_key(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

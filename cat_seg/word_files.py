"""Files of words, as people and tools write them; `cat_seg.vocabulary` says what they mean."""

from __future__ import annotations

import ast
import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any

from cat_seg.errors import CATSegError
from cat_seg.trust.text import parse_yaml, read_text

EXAMPLE = 'expected names, as in ["cat", "sofa, couch"]'
_LONGEST_LINE = 10_000  # characters


def read_words(path: Path) -> Any:
    """Read a file of words as something that `Vocabulary.parse` understands.

    Raises:
        CATSegError: saying what is wrong, without the file's name.
    """
    text = read_text(path)
    suffix = path.suffix.lower()
    if suffix == ".json" or text.lstrip().startswith(("[", "{")):
        return parse_literal(text)
    if suffix in (".yaml", ".yml"):
        return parse_yaml(text) or []
    lines = [line.strip(" \r") for line in text.splitlines()]
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if any(len(line) > _LONGEST_LINE for line in lines):
        raise CATSegError(f"a line has more than {_LONGEST_LINE} characters; expected names.")
    table = suffix in (".csv", ".tsv")
    return _from_table(lines, alone=table) or _from_lines(lines)


def parse_literal(text: str) -> Any:
    """Parse JSON, or a list or dict as Python writes it (single quotes, trailing comma)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = error
    try:
        if len(text) < 1 << 20:
            return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    raise CATSegError(f"not JSON ({problem}); {EXAMPLE}.") from problem


# Headers of columns, the likeliest first.
_NAME_HEADERS = "name names class_name label_name category_name class label category".split()
_ID_HEADERS = ("id", "idx", "index", "class_id", "label_id", "category_id", "train_id", "trainid")


def _from_table(lines: list[str], *, alone: bool) -> list[list[str]] | None:
    """Read the column of names of a table with a header; None if there is no header.

    Args:
        lines: of the file.
        alone: whether a header may stand for a single column, or for columns without ids.
    """
    for delimiter in "\t,;":
        try:
            rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise CATSegError(f"not a table ({error}).") from error
        header = [re.sub(r"[\s-]+", "_", cell.strip().lower()) for cell in rows[0]] if rows else []
        name = next((header.index(h) for h in _NAME_HEADERS if h in header), None)
        identity = next((header.index(h) for h in _ID_HEADERS if h in header), None)
        if name is None or (identity is None and not alone):
            continue
        for i, row in enumerate(rows[1:], 1):
            if len(row) <= max(name, identity or 0):
                raise CATSegError(f"row {i} is {row}; expected the columns {header}.")
        rows = rows[1:]
        ids = [as_id(row[identity]) for row in rows] if identity is not None else []
        if ids and None not in ids:
            if len(set(ids)) < len(ids):
                raise CATSegError(f"an id is there twice in the column {header[identity or 0]}.")
            rows = [row for _, row in sorted(zip(ids, rows, strict=True), key=lambda r: r[0] or 0)]
        return [_split_line(row[name]) for row in rows]
    return None


def _from_lines(lines: list[str]) -> list[list[str]]:
    """Read a class a line, without the ids or bullets that stand before or behind all names."""
    lines = [line.rstrip(",; ") for line in lines]
    if all(re.match(r"[-*•]\s+\S", line) for line in lines):
        lines = [line[1:].strip() for line in lines]
    if numbered := _without_ids(lines):
        return [_split_line(line) for line in numbered]
    if len(lines) > 2 and _without_ids(lines[1:]):
        raise CATSegError(
            f'its first line, {lines[0]!r}, looks like a header; expected a column called "name".'
        )
    if len(lines) == 1 and re.search(r"[,;]", lines[0]):
        raise CATSegError(
            f"its one line, {shorten(repr(lines[0]))}, may be one class or several; write one "
            'class a line, and synonyms as in "sofa|couch".'
        )
    return [_split_line(line) for line in lines]


def _split_line(line: str) -> list[str]:
    """Split a line, or a cell of a table, into synonyms; an empty one stays to be refused."""
    names = [part.strip().strip("\"'").strip() for part in re.split(r"[,;|]", line)]
    return [name for name in names if name] or [line]


def _without_ids(lines: list[str]) -> list[str] | None:
    """Return the lines without ids before or behind the names; None if they have none.

    Numbers are ids where they count up on all lines, also with gaps if a mark separates them.

    Raises:
        CATSegError: if every line has an id and a mark, but they do not count up.
    """
    for pattern in (
        r"(?P<id>\d{1,9})(?P<mark>\s*[,:;=|\t.)]\s*|\s+)(?P<name>\S.*)",
        r"(?P<name>.*\S)(?P<mark>\s*[,:;=|\t]\s*)(?P<id>\d{1,9})",
    ):
        matches = [m for line in lines if (m := re.fullmatch(pattern, line))]
        if not matches or len(matches) < len(lines):
            continue
        ids = [int(match["id"]) for match in matches]
        marked = all(match["mark"].strip(" ") for match in matches)
        rising = all(a < b for a, b in itertools.pairwise(ids))
        dense = rising and ids[0] in (0, 1) and ids[-1] - ids[0] == len(ids) - 1
        if (marked and rising) or (dense and len(ids) > 1):
            return [match["name"] for match in matches]
        if marked and all(match["mark"].strip(" ") != "." for match in matches):
            raise CATSegError(f"its ids {shorten(ids)} do not count up; put the lines in order.")
    return None


def as_id(value: Any) -> int | None:
    """Return an integer, or a string of one, as an integer; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}\s*", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def shorten(value: Any, length: int = 80) -> str:
    """Return a string, or how anything else is shown, cut to a length for a message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else f"{text[: length - 3]}..."

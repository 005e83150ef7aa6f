"""Class names. A class may have several, written in one string and parted by ", "."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def parse_vocabulary(class_names: Sequence[str]) -> list[list[str]]:
    """Split each class's names: ["cat", "person, child"] gives [["cat"], ["person", "child"]].

    Raises:
        ValueError: if there is no class, or one without a name.
    """
    if isinstance(class_names, str):
        raise ValueError(
            f"The vocabulary is one string, {class_names!r}; expected a list of class names."
        )
    if not class_names:
        raise ValueError("The vocabulary is empty; expected at least one class name.")
    classes = []
    for i, name in enumerate(class_names):
        synonyms = [part.strip() for part in name.split(", ") if part.strip(" ,")]
        if not synonyms:
            raise ValueError(
                f"Class {i} of the vocabulary is {name!r}; expected a name, or several parted by "
                "', '."
            )
        classes.append(synonyms)
    return classes


def read_vocabulary(path: str | Path) -> list[str]:
    """Read class names from a JSON list, or from a text file with a class a line.

    Raises:
        ValueError: if the file cannot be read or holds no vocabulary.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a vocabulary ({error}).") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected a JSON list of strings.")
    if path.suffix != ".json":
        names = [name.strip() for name in names if name.strip()]
    try:
        parse_vocabulary(names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return names

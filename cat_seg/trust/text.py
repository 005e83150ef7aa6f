"""Reading YAML and text, executing nothing in them, within limits that are checked first."""

from __future__ import annotations

import copy
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cat_seg.errors import CATSegError
from cat_seg.resources import user_path

_TEXT_BYTES = 1 << 29  # the annotations of COCO, which hold its class names, have 450 MB
_YAML_BYTES = 1 << 22  # PyYAML takes seconds for that
_YAML_VALUES = 200_000  # what aliases stand for included
_SCALAR = 100  # characters of a number or date; their conversion is quadratic
_SIZES = re.compile(
    r"\[int\(x \* ([\d.]{1,8}) \* (\d{1,5})\) for x in range\((\d{1,3}), (\d{1,3})\)\]"
)
_FILES = 50  # of a config: itself, and what it names as _BASE_


def read_text(path: str | Path, most_bytes: int = _TEXT_BYTES) -> str:
    """Read a file of text in UTF-8, UTF-16 or UTF-32, without its byte order mark.

    Raises:
        CATSegError: if it is no regular file, too large, or no text; without the file's name.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CATSegError("no regular file; expected a file of text.")
            if status.st_size > most_bytes:
                raise CATSegError(f"{status.st_size} bytes; expected at most {most_bytes}.")
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise CATSegError(f"cannot be opened ({error.strerror or error}).") from error
    try:
        return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CATSegError(f"not text in UTF-8 or UTF-16 ({error}); save it as UTF-8.") from error


def read_json(path: str | Path) -> Any:
    """Read a file of JSON.

    Raises:
        CATSegError: naming the file, if it is none.
    """
    try:
        return json.loads(read_text(path))
    except CATSegError as error:
        raise CATSegError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CATSegError(f"{path}: not JSON ({error}); expected what JSON can hold.") from error


def parse_yaml(text: str) -> Any:
    """Parse YAML to dicts, lists and plain values.

    Raises:
        CATSegError: if it is none, has a tag that asks for an object or for code, or holds itself,
            or more than a file by hand does; without the file's name.
    """
    if len(text) > _YAML_BYTES:
        raise CATSegError(f"not YAML ({len(text)} characters; expected at most {_YAML_BYTES}).")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise CATSegError(f"not YAML ({' '.join(str(error).split())}).") from error
    except (AttributeError, KeyError, IndexError) as error:  # PyYAML's, of tags on wrong values
        raise CATSegError(f"not YAML ({type(error).__name__}: {error}).") from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """PyYAML's safe loader, and the one tag of published configs, which is computed and not run."""

    def sizes(self, node: yaml.Node) -> list[int]:
        """Compute !!python/object/apply:eval ["[int(x * 0.1 * 384) for x in range(5, 21)]"]."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        text = str(parts[0].value) if len(parts) == 1 else ""
        found = _SIZES.fullmatch(text)
        if not found:
            raise yaml.constructor.ConstructorError(
                None, None, f"the tag {node.tag!r} is not run", node.start_mark
            )
        factor, size, first, last = found.groups()
        return [int(x * float(factor) * int(size)) for x in range(int(first), int(last))]


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _Loader.sizes)


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a config over what it names as `_BASE_`: local files of plain values.

    Raises:
        CATSegError: naming the file that is none, and why.
    """
    return _read_config(Path(path), [])


def _read_config(path: Path, seen: list[Path]) -> dict[str, Any]:
    seen.append(path)
    if len(seen) > _FILES:
        raise CATSegError(
            f"Config {seen[0]}: it names more than {_FILES} files as _BASE_; does one name itself?"
        )
    try:
        content = parse_yaml(read_text(path, _YAML_BYTES))
    except CATSegError as error:
        raise CATSegError(f"Config {path}: {error}") from error
    if not isinstance(content, dict):
        raise CATSegError(
            f"Config {path}: expected keys and values in the tree of the config, got "
            f"{type(content).__name__}."
        )
    merged: dict[str, Any] = {}
    bases = content.pop("_BASE_", [])
    for base in [bases] if not isinstance(bases, list) else bases:
        if not isinstance(base, str) or "://" in base:
            raise CATSegError(
                f"Config {path}: _BASE_ is {base!r}; expected a local file. Download it, and name "
                "that."
            )
        _merge(_read_config(Path(path.parent, user_path(base)), seen), merged)
    _merge(content, merged)
    return merged


def _merge(over: dict[str, Any], base: dict[str, Any]) -> None:
    """Put values over those of a base, in place; as fvcore does it."""
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(value, base[key])
        else:
            base[key] = copy.deepcopy(value)  # which an alias may share


def _count(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Count the values that a node stands for, each alias as often as it is there."""
    known = counts.get(id(node), 0)
    if known is None:
        raise ValueError("it holds itself")
    if known:
        return known
    counts[id(node)] = None
    count = 1
    if isinstance(node, yaml.ScalarNode):
        if node.tag != "tag:yaml.org,2002:str" and len(node.value) > _SCALAR:
            raise ValueError(f"{node.value[:20]!r}... has {len(node.value)} characters")
    else:
        children: Iterable[Any] = node.value
        if isinstance(node, yaml.MappingNode):
            children = (part for pair in node.value for part in pair)
        count += sum(_count(child, counts) for child in children)
    if count > _YAML_VALUES:
        raise ValueError(f"it has more than {_YAML_VALUES} values")
    counts[id(node)] = count
    return count


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; of a FIFO, without waiting for who writes into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))

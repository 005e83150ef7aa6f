"""Every use of detectron2 in the project: the stand-in has it, as the real one does.

Uses are found by reading the source: names that are imported, attributes of imported modules, and
how what was imported is called.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import cat_seg.compat
from tests.compat.implementations import IS_REAL, STAND_IN_FOLDER, Implementation

PROJECT = Path(cat_seg.compat.__file__).parents[2]
SOURCES = ("cat_seg", "demo", "datasets", "train_net.py")


class Use(NamedTuple):
    where: str
    name: str  # without "detectron2."
    call: tuple[int, tuple[str, ...]] | None = None  # number of arguments, names of keywords


def python_files() -> list[Path]:
    roots = [PROJECT / name for name in SOURCES]
    files = [f for root in roots for f in (root.rglob("*.py") if root.is_dir() else [root])]
    return [f for f in files if f.is_file() and STAND_IN_FOLDER not in f.parents]


def uses_in(file: Path) -> Iterator[Use]:
    tree = ast.parse(file.read_text())
    names: dict[str, str] = {}  # in this file -> in detectron2
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("detectron2"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}".removeprefix("detectron2.")
                names[alias.asname or alias.name] = name
                yield Use(f"{file.name}:{node.lineno}", name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("detectron2."):
                    name = alias.name.removeprefix("detectron2.")
                    names[alias.asname or alias.name] = name
                    yield Use(f"{file.name}:{node.lineno}", name)

    def resolve(node: ast.AST) -> str | None:
        if isinstance(node, ast.Attribute):
            base = resolve(node.value)
            return base and f"{base}.{node.attr}"
        return names.get(node.id) if isinstance(node, ast.Name) else None

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := resolve(node)):
            yield Use(f"{file.name}:{node.lineno}", name)
        elif isinstance(node, ast.Call) and (name := resolve(node.func)):
            keywords = tuple(keyword.arg or "**" for keyword in node.keywords)
            starred = any(isinstance(argument, ast.Starred) for argument in node.args)
            if not starred and "**" not in keywords:
                yield Use(f"{file.name}:{node.lineno}", name, (len(node.args), keywords))


def look_up(d2: Implementation, name: str) -> Any:
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found: Any = d2(".".join(parts[:i]))
        except ImportError:
            continue
        for part in parts[i:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def accepts(what: Callable[..., Any], count: int, keywords: tuple[str, ...]) -> bool:
    """Tell whether something can be called so; what is `configurable` also with a config."""
    signature = inspect.signature(what)
    if binds(signature, count, keywords):
        return True
    if not (from_config := getattr(what, "from_config", None)):
        return False
    translation = inspect.signature(from_config)
    known = tuple(k for k in keywords if k in translation.parameters)
    passed_on = set(keywords) - set(known)
    return binds(translation, count, known) and passed_on <= set(signature.parameters)


def binds(signature: inspect.Signature, count: int, keywords: tuple[str, ...]) -> bool:
    try:
        signature.bind(*[None] * count, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


ALL_USES = sorted({use for file in python_files() for use in uses_in(file)}, key=str)


def test_the_walk_finds_uses_of_each_kind():
    used = {(use.name, use.call is not None) for use in ALL_USES}
    assert ("config.get_cfg", True) in used
    assert ("utils.comm.get_rank", True) in used  # an attribute of a module
    assert len(used) > 50


def test_every_use_is_there_and_accepts_its_arguments(d2):
    problems = []
    for use in ALL_USES:
        try:
            found = look_up(d2, use.name)
        except (ImportError, AttributeError) as error:
            problems.append(f"{use.where}: {error}")
            continue
        if use.call and callable(found) and not accepts(found, *use.call):
            problems.append(f"{use.where}: {use.name}{inspect.signature(found)} got {use.call}")
    assert not problems, "\n".join(problems)


def public_names(d2: Implementation) -> Iterator[tuple[str, str]]:
    for file in sorted(STAND_IN_FOLDER.rglob("*.py")):
        parts = file.relative_to(STAND_IN_FOLDER).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        for name in getattr(d2(module), "__all__", []) if module else []:
            yield module, name


@pytest.mark.skipif(not IS_REAL, reason="needs the real detectron2")
def test_public_names_are_those_of_the_real_one_with_compatible_signatures():
    problems = []
    real, stand_in = Implementation("detectron2"), Implementation("stand_in")
    for module, name in public_names(stand_in):
        ours = getattr(stand_in(module), name)
        try:
            theirs = getattr(real(module), name)
        except (ImportError, AttributeError) as error:
            problems.append(f"{module}.{name}: {error}")
            continue
        if inspect.isfunction(ours) or inspect.isclass(ours):
            problems.extend(f"{module}.{name}: {p}" for p in differences(ours, theirs))
    assert not problems, "\n".join(problems)


def differences(ours: Any, theirs: Any) -> Iterator[str]:
    """Compare what can be given: positions, names and plain defaults of ours must be theirs."""
    try:
        mine, its = (inspect.signature(x).parameters for x in (ours, theirs))
    except ValueError:  # of a built-in base
        return
    positional = [p.name for p in mine.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    expected = [p.name for p in its.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if positional != expected[: len(positional)]:
        yield f"expected arguments {expected}, got {positional}"
    for name, parameter in mine.items():
        other = its.get(name)
        if other is None:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                yield f"{name} is unknown to the real one"
        elif name != "allow_unsafe" and (  # which is False here: a YAML runs nothing
            isinstance(parameter.default, int | float | str | None)
            and parameter.default != other.default
        ):
            yield f"{name} defaults to {other.default!r}, here to {parameter.default!r}"
    if inspect.isclass(ours):
        for name, method in inspect.getmembers(ours, inspect.isfunction):
            if not name.startswith("_") and hasattr(theirs, name):
                yield from (f"{name}(): {p}" for p in differences(method, getattr(theirs, name)))

"""The stand-in holds what the project calls, and no more.

Found by reading: a function, class or method is used if its name occurs in the project, or in the
stand-in within something that is used itself. Names alone are compared, so that a namesake may
hide what is superfluous, but never the other way round.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cat_seg.compat
from tests.compat.implementations import IS_REAL, STAND_IN_FOLDER, Implementation

PROJECT = Path(cat_seg.compat.__file__).parents[2]
USERS = ("cat_seg/plugin", "cat_seg/cli", "cat_seg/synthetic", "datasets", "demo", "train_net.py")
# What packages of datasets that register themselves call, such as MESS's.
DATASET_PACKAGES = {
    "DatasetCatalog", "MetadataCatalog", "Metadata", "as_dict", "colormap", "get", "list",
    "load_sem_seg", "register", "remove", "set",
}  # fmt: skip


class Definition(NamedTuple):
    place: str
    name: str
    uses: set[str]  # names in it, but for its public methods, which count by themselves


def names_in(node: ast.AST) -> set[str]:
    """Every name that occurs in a piece of code, not as a definition or an import."""
    found = set()
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            found.add(child.id)
        elif isinstance(child, ast.Attribute):
            found.add(child.attr)
        elif isinstance(child, ast.Call) and getattr(child.func, "id", "") == "getattr":
            found |= {a.value for a in child.args[1:2] if isinstance(a, ast.Constant)}
    return found


def project_names() -> set[str]:
    """Every name that occurs in the project, also in imports from detectron2."""
    found = set()
    for root in (PROJECT / name for name in USERS):
        for file in root.rglob("*.py") if root.is_dir() else [root]:
            tree = ast.parse(file.read_text())
            found |= names_in(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                    "detectron2"
                ):
                    found |= {alias.name for alias in node.names}
    return found


def is_public_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and not node.name.startswith("_")


def definitions() -> Iterator[Definition]:
    """All of the stand-in; statements of a module that define nothing have an empty name."""
    for file in sorted(STAND_IN_FOLDER.rglob("*.py")):
        module = str(file.relative_to(STAND_IN_FOLDER))
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                methods = [x for x in node.body if is_public_function(x)]
                rest = [x for x in node.body if x not in methods]
                uses = map(names_in, [*rest, *node.bases, *node.decorator_list])
                yield Definition(f"{module}: {node.name}", node.name, set().union(*uses))
                for method in methods:
                    assert isinstance(method, ast.FunctionDef)
                    place = f"{module}: {node.name}.{method.name}"
                    yield Definition(place, method.name, names_in(method))
            elif isinstance(node, ast.FunctionDef):
                yield Definition(f"{module}: {node.name}", node.name, names_in(node))
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name) and target.id != "__all__":
                        uses = names_in(node) - {target.id}
                        yield Definition(f"{module}: {target.id}", target.id, uses)
            elif isinstance(node, ast.Expr):
                yield Definition(module, "", names_in(node))


def inherited_from_libraries() -> set[str]:
    """`Class.method` of the stand-in's methods that another library's base class has, and calls."""
    d2, found = Implementation("stand_in" if IS_REAL else "detectron2"), set()
    for file in sorted(STAND_IN_FOLDER.rglob("*.py")):
        if file.name == "__init__.py":
            continue
        module = d2(".".join(file.relative_to(STAND_IN_FOLDER).with_suffix("").parts))
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                foreign = [b for b in value.__mro__ if not b.__module__.startswith(d2.name)]
                inherited = {name for base in foreign for name in vars(base)} & set(vars(value))
                found |= {f"{value.__name__}.{name}" for name in inherited}
    return found


def superfluous(used: set[str]) -> list[str]:
    """The places of what nothing uses, given the names that the project uses."""
    waiting, inherited = [*definitions()], inherited_from_libraries()
    reached = True
    while reached:
        reached = [
            d
            for d in waiting
            if not d.name or d.name in used or d.place.split(": ")[-1] in inherited
        ]
        waiting = [d for d in waiting if d not in reached]
        used = used.union(*(d.uses for d in reached))
    return [d.place for d in waiting]


def test_everything_in_the_stand_in_is_used():
    assert superfluous(project_names() | DATASET_PACKAGES) == []


def test_what_is_not_used_is_found():
    found = superfluous((project_names() | DATASET_PACKAGES) - {"inference_on_dataset", "colormap"})
    assert "utils/colormap.py: colormap" in found
    assert "utils/colormap.py: _GOLDEN" in found  # of which nothing else makes use


def test_every_name_that_packages_offer_is_used():
    used = project_names() | DATASET_PACKAGES
    within = set().union(*(d.uses for d in definitions()))
    for file in STAND_IN_FOLDER.rglob("__init__.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                names = {alias.name for alias in node.names}
                assert names <= used | within, f"{file}: {names - used - within}"

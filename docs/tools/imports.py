"""Draw which package imports which into docs/architecture.md.

    python docs/tools/imports.py            # writes the diagram
    python docs/tools/imports.py --check    # exit code 1 if it is out of date

Imports are read from the source, so that those inside functions count too. tests/test_doors.py
checks the rules on the same reading.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- written by docs/tools/imports.py -->", "<!-- end -->"
SCRIPTS = ("train_net.py", "demo/*.py", "datasets/*.py", "docs/tools/*.py")
# Modules of the package that are run, not imported.
ENTRY_POINTS = ("cat_seg.__main__", "cat_seg.cli", "cat_seg.synthetic.rebuild")
# What every other module may use.
BASE = ("cat_seg.errors", "cat_seg.resources", "cat_seg.utils")


class Import(NamedTuple):
    """An import statement's one name."""

    importer: str  # module
    imported: str  # module, also where an object in it is imported
    line: int


def modules() -> dict[str, Path]:
    """Return the files of all modules and scripts, by dotted name."""
    files = [*(ROOT / "cat_seg").rglob("*.py")]
    files += [file for pattern in SCRIPTS for file in ROOT.glob(pattern)]
    names = {file: file.relative_to(ROOT).with_suffix("").parts for file in sorted(files)}
    return {".".join(n[:-1] if n[-1] == "__init__" else n): file for file, n in names.items()}


def all_imports() -> list[Import]:
    """Return every import of every module and script."""
    known = modules()
    return [found for name, file in known.items() for found in imports_of(name, file, known)]


def imports_of(module: str, file: Path, known: dict[str, Path]) -> Iterator[Import]:
    """Yield the imports of one module, except those for type checkers alone.

    Args:
        module: its dotted name.
        file: its source.
        known: all modules, which tell `from package import module` from an object's import.
    """
    for node in _statements(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # from .sibling import name
                up = node.level - (file.name == "__init__.py")
                parents = module.split(".")[: len(module.split(".")) - up]
                source = ".".join([*parents, source]).rstrip(".")
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                yield Import(module, submodule if submodule in known else source, node.lineno)


def within(module: str, *packages: str) -> bool:
    """Tell whether a module is one of these packages or inside one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def layer(module: str) -> str:
    """Return "entry points", "plugin" or "library"."""
    if not within(module, "cat_seg") or within(module, *ENTRY_POINTS):
        return "entry points"
    return "plugin" if within(module, "cat_seg.plugin", "cat_seg.compat") else "library"


def part(module: str) -> str:
    """Return the node of the diagram that a module belongs to."""
    if layer(module) == "entry points":
        return "cat_seg.cli, scripts"
    if within(module, *BASE):
        return "errors, resources, utils"
    depth = 3 if within(module, "cat_seg.plugin") else 2
    names = module.split(".")[:depth]
    if not ROOT.joinpath(*names).is_dir():
        names = names[:-1]
    return ".".join(names) if len(names) > 1 else "cat_seg/*.py"


def diagram() -> str:
    """Return the imports between parts as a Mermaid flow chart."""
    found = [i for i in all_imports() if within(i.imported, "cat_seg")]
    edges = sorted({(part(i.importer), part(i.imported)) for i in found})
    detectron2 = {part(i.importer) for i in all_imports() if within(i.imported, "detectron2")}
    parts = sorted({(layer(module), part(module)) for module in modules()})
    ids = {name: re.sub(r"\W+", "_", name) for _, name in parts}
    lines = ["```mermaid", "flowchart TD"]
    for title in ("entry points", "plugin", "library"):
        lines.append(f'    subgraph {title.split()[0]} ["{title}"]')
        lines += [f'        {ids[name]}["{name}"]' for place, name in parts if place == title]
        lines.append("    end")
    lines += [f"    {ids[a]} --> {ids[b]}" for a, b in edges if a != b]
    lines += [f"    {ids[name]} -.-> detectron2" for name in sorted(detectron2)]
    return "\n".join([*lines, "```"])


def page() -> str:
    """Return docs/architecture.md with the diagram as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n{diagram()}\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Draw which package imports which.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    options = parser.parse_args(arguments)
    if not options.check:
        PAGE.write_text(page(), encoding="utf-8")
    elif page() != PAGE.read_text(encoding="utf-8"):
        print("docs/architecture.md is out of date: python docs/tools/imports.py", file=sys.stderr)
        return 1
    return 0


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree, but not into `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.orelse:
                yield statement
                yield from _statements(statement)
        else:
            yield child
            yield from _statements(child)


if __name__ == "__main__":
    sys.exit(main())

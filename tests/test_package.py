"""What pyproject.toml promises: dependencies where they are used, files that go into the wheel."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cat_seg
import cat_seg.plugin
from docs.tools import imports
from docs.tools.imports import layer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = imports.ROOT
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
# Distributions whose module has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "open_clip": "open_clip_torch",
    "pillow_heif": "pillow-heif",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "yaml": "pyyaml",
}
OWN = {"cat_seg", "detectron2", "docs", "demo", "tests", "datasets", "preparation", "train_net"}


def distributions(requirements: list[str]) -> set[str]:
    """Return the names of requirements, with those of the extras that they name."""
    found = set()
    for requirement in requirements:
        if extras := re.fullmatch(r"cat-seg\[([\w,-]+)\]", requirement):
            for extra in extras[1].split(","):
                found |= distributions(PROJECT["optional-dependencies"][extra])
        else:
            found.add(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0])
    return found


CORE = distributions(PROJECT["dependencies"])
EXTRA = {name: distributions(r) for name, r in PROJECT["optional-dependencies"].items()}


# What the library imports only where it is used, see tests/test_doors.py.
OPTIONAL = set().union(
    *(
        EXTRA[name]
        for name in ("coco", "export", "heif", "label", "serve", "supervision", "video", "web")
    )
)


def used_by(files: dict[str, Path]) -> set[str]:
    """Return the distributions that modules import."""
    found = {i.imported for name, file in files.items() for i in imports.imports_of(name, file, {})}
    packages = {name.partition(".")[0] for name in found} - OWN - set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(package, package) for package in packages}


def of_layer(wanted: str) -> dict[str, Path]:
    return {name: file for name, file in imports.modules().items() if layer(name) == wanted}


def test_the_library_needs_its_dependencies_and_no_more():
    assert used_by(of_layer("library")) == CORE | OPTIONAL


def test_the_plugin_needs_no_more_than_its_extra():
    assert used_by(of_layer("plugin")) - CORE <= EXTRA["train"]


def test_entry_points_need_no_more_than_all_extras():
    assert used_by(of_layer("entry points")) | OPTIONAL <= CORE | EXTRA["all"]


def test_the_tests_need_no_more_than_their_extra():
    files = {file.stem: file for file in (ROOT / "tests").rglob("*.py")}
    used = used_by(files) - files.keys() - {"tomli"}  # tomli comes with pytest
    assert used <= CORE | EXTRA["test"]


def test_extras_can_be_had_from_a_package_index():
    assert not [r for rs in PROJECT["optional-dependencies"].values() for r in rs if "@" in r]


def test_the_plugin_asks_for_what_its_extra_brings():
    assert set(cat_seg.plugin._NEEDED) == EXTRA["train"]


def test_what_the_plugin_lacks_is_named_with_the_command(tmp_path: Path):
    code = f"""
import sys; sys.path[:0] = {[str(ROOT), *filter(None, sys.path)]!r}
from importlib import util
found = util.find_spec
util.find_spec = lambda name, *a: None if name in ("fvcore", "yacs") else found(name, *a)
from cat_seg.cli.main import main
sys.exit(main(["evaluate", "--config-file", "configs/synthetic.yaml"]))
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 1
    assert "need fvcore, yacs, missing here: pip install 'cat-seg[train]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_ci_runs_the_test_command_of_the_readme():
    command = 'pip install -e ".[test]" && pytest\n'
    for name in ("README.md", ".ci/run"):
        assert f"\n{command}" in (ROOT / name).read_text(encoding="utf-8"), name


def test_the_version_is_written_once():
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cat_seg.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", cat_seg.__version__)
    # As a literal, setuptools reads it without importing the package.
    source = (ROOT / "cat_seg" / "__init__.py").read_text(encoding="utf-8")
    assert f'\n__version__ = "{cat_seg.__version__}"\n' in source


@pytest.mark.parametrize("script", PROJECT["scripts"].values())
def test_console_scripts_can_be_called(script: str):
    module, _, function = script.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_file_of_the_package_goes_into_the_wheel():
    package = ROOT / "cat_seg"
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["cat_seg"]
    taken = {path for pattern in patterns for path in package.glob(pattern)}
    others = {
        path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert package / "py.typed" in others
    assert others - taken == set()


def test_every_folder_of_code_is_a_package():
    folders = {file.parent for file in (ROOT / "cat_seg").rglob("*.py")}
    assert [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()] == []

"""Which detectron2 `ensure_detectron2` leads to, in processes without any installed package."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

import cat_seg.compat

PREPARE = f"""
import importlib.util, logging, sys
logging.basicConfig(format="%(levelname)s|%(name)s|%(message)s")
spec = importlib.util.spec_from_file_location("compat", {cat_seg.compat.__file__!r})
sys.modules["compat"] = compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
"""
PROJECT = Path(cat_seg.compat.__file__).parents[2]
REAL = '__version__ = "0.6"\n'


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code, which finds `compat` imported, with `folder` as the only place of packages."""
    search = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", search + PREPARE + code],
        capture_output=True,
        text=True,
        check=False,
    )


def package(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)


def test_stand_in_is_used_where_nothing_is_installed(tmp_path):
    result = run(
        "finders = list(sys.meta_path)\n"
        "compat.ensure_detectron2(); compat.ensure_detectron2()\n"
        "assert sys.meta_path[:-1] == finders, 'one finder, at the end'\n"
        "import detectron2; from detectron2.layers import ShapeSpec\n"
        "print(detectron2.__version__, ShapeSpec(channels=3).channels)",
        tmp_path,
    )
    assert result.stdout == "0.6+cat_seg 3\n", result.stderr
    (line,) = result.stderr.splitlines()  # said once
    assert line.startswith("WARNING|compat|detectron2 is not installed")
    assert cat_seg.compat.INSTALL_COMMAND in line


def test_real_install_is_left_alone(tmp_path):
    package(tmp_path, "detectron2", REAL)
    result = run(
        "finders = list(sys.meta_path)\n"
        "compat.ensure_detectron2()\n"
        "import detectron2\n"
        "print(detectron2.__version__, sys.meta_path == finders)",
        tmp_path,
    )
    assert (result.stdout, result.stderr) == ("0.6 True\n", "")


def test_real_install_that_appears_later_wins_whole(tmp_path):
    package(tmp_path / "later", "detectron2", REAL)
    result = run(
        f"compat.ensure_detectron2(); sys.path.append({str(tmp_path / 'later')!r})\n"
        "import detectron2; print(detectron2.__version__)\n"
        "import detectron2.layers",
        tmp_path,
    )
    assert result.stdout == "0.6\n"
    assert "No module named 'detectron2.layers'" in result.stderr  # not the stand-in's


def test_editable_install_is_left_alone(tmp_path):
    package(tmp_path / "elsewhere", "detectron2", REAL)
    place = tmp_path / "elsewhere" / "detectron2" / "__init__.py"
    result = run(
        "class Editable:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path, target=None):\n"
        "        if name == 'detectron2':\n"
        f"            return importlib.util.spec_from_file_location(name, {str(place)!r})\n"
        "sys.meta_path.append(Editable)\n"
        "compat.ensure_detectron2()\n"
        "import detectron2; print(detectron2.__version__)",
        tmp_path,
    )
    assert (result.stdout, result.stderr) == ("0.6\n", "")


def test_bare_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "detectron2" / "configs").mkdir(parents=True)
    result = run("compat.ensure_detectron2()", tmp_path)
    error = result.stderr.splitlines()[-1]
    assert result.returncode and error.startswith("ImportError")
    assert str(tmp_path / "detectron2") in error
    assert "Rename or move" in error and cat_seg.compat.INSTALL_COMMAND in error


def test_bare_folder_beside_a_real_install_does_not_matter(tmp_path):
    (tmp_path / "detectron2").mkdir()
    package(tmp_path / "site", "detectron2", REAL)
    result = run(
        f"sys.path.append({str(tmp_path / 'site')!r}); compat.ensure_detectron2()\n"
        "import detectron2; print(detectron2.__version__)",
        tmp_path,
    )
    assert (result.stdout, result.stderr) == ("0.6\n", "")


def test_broken_real_install_fails_with_its_own_error(tmp_path):
    package(tmp_path, "detectron2", "raise OSError('libtorch is another one')\n")
    result = run("compat.ensure_detectron2()\nimport detectron2", tmp_path)
    assert result.returncode
    assert result.stderr.splitlines()[-1] == "OSError: libtorch is another one"


def test_missing_names_are_errors_that_name_them(tmp_path):
    statements = {
        "import detectron2.export": "detectron2.export",
        "from detectron2 import model_zoo": "detectron2.model_zoo",
        "from detectron2.layers import Conv2d": "detectron2.layers.Conv2d",
        "from detectron2.layers.shape_spec import Shape": "detectron2.layers.shape_spec.Shape",
        "import detectron2.layers as layers; layers.Conv2d": "detectron2.layers.Conv2d",
    }
    for statement, name in statements.items():
        result = run(f"compat.ensure_detectron2()\n{statement}", tmp_path)
        error = result.stderr.splitlines()[-1]
        assert error.startswith(("ImportError", "AttributeError")), error
        assert f"{name} is not part of CAT-Seg's stand-in" in error
        assert cat_seg.compat.INSTALL_COMMAND in error


def test_what_python_itself_asks_of_modules_stays_an_attribute_error(tmp_path):
    result = run(
        "compat.ensure_detectron2()\n"
        "import detectron2.layers, detectron2.layers.shape_spec as module\n"
        "print(hasattr(module, '__wrapped__'), hasattr(detectron2.layers, 'Conv2d'))",
        tmp_path,
    )
    assert result.stdout == "False False\n", result.stderr


def test_the_library_alone_changes_nothing(tmp_path):
    result = run(
        f"sys.path.insert(0, {str(PROJECT)!r}); finders = list(sys.meta_path)\n"
        "import cat_seg\n"
        "print(importlib.util.find_spec('detectron2'), sys.meta_path == finders)",
        tmp_path,
    )
    assert (result.stdout, result.stderr) == ("None True\n", "")


CHILDREN = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
import multiprocessing

def child(shape, method, depth):
    import detectron2
    print(depth, detectron2.__version__, shape.channels, flush=True)
    if depth:
        start(shape, method, depth - 1)

def start(*args):
    process = multiprocessing.get_context(args[1]).Process(target=child, args=args)
    process.start()
    process.join(60)

def main():
    from cat_seg.compat import ensure_detectron2
    ensure_detectron2()
    from detectron2.layers import ShapeSpec
    start(ShapeSpec(channels=3), sys.argv[1], 1)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_started_processes_find_it_though_only_main_imports_cat_seg(tmp_path, method):
    (tmp_path / "script.py").write_text(CHILDREN)
    command = [sys.executable, "-I", "-S", str(tmp_path / "script.py"), method]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout == "1 0.6+cat_seg 3\n0 0.6+cat_seg 3\n", result.stderr
    assert result.stderr.count("detectron2 is not installed") == 1  # not by the children

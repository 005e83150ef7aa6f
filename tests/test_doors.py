"""Which package may import which: see docs/architecture.md."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from docs.tools import imports
from docs.tools.imports import Import, layer, within

ALL_IMPORTS = imports.all_imports()
MODULES = imports.modules()
LIBRARY = [module for module in MODULES if layer(module) == "library"]
THE_MODEL = (
    *("cat_seg.model", "cat_seg.modeling", "cat_seg.inference", "cat_seg.loading"),
    *("cat_seg.plugin.backbone", "cat_seg.plugin.head", "cat_seg.plugin.meta_arch"),
    "cat_seg.plugin.resnet",
)
# Fails whoever asks for one of these packages, by an import or by `find_spec`.
REFUSE = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in (
            *("detectron2", "fvcore", "iopath", "tensorboard", "yacs"),
            *("av", "fastapi", "gradio", "uvicorn"),
            "onnxscript",  # torch itself looks for onnx and onnxruntime
            *("pillow_heif", "pycocotools", "supervision"),
        ):
            raise AssertionError(f"the library asked for {name}")
sys.meta_path.insert(0, Refuse())
"""


def shown(found: list[Import]) -> list[str]:
    return [f"{i.importer}:{i.line} imports {i.imported}" for i in found]


def run(code: str, folder: Path) -> str:
    """Run code in a process of its own where warnings are errors, and return its stderr."""
    paths = [str(imports.ROOT), *filter(None, sys.path)]
    code = f"import sys; sys.path[:0] = {paths!r}\n{code}"
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_the_library_imports_neither_the_plugin_nor_entry_points():
    mine = [i for i in ALL_IMPORTS if layer(i.importer) == "library"]
    assert mine
    others = ("detectron2", "cat_seg.plugin", "cat_seg.compat", *imports.ENTRY_POINTS)
    assert not shown([i for i in mine if within(i.imported, *others)])


def test_only_cat_seg_itself_names_the_plugin_in_a_string():
    """As `importlib.import_module` takes it."""
    users = {
        module
        for module in LIBRARY
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if within(node.value, "detectron2", "cat_seg.plugin", "cat_seg.compat")
    }
    assert users == {"cat_seg"}


def test_the_plugin_imports_no_entry_point():
    mine = [i for i in ALL_IMPORTS if layer(i.importer) == "plugin"]
    assert not shown([i for i in mine if within(i.imported, *imports.ENTRY_POINTS)])


@pytest.mark.parametrize("package", ["cat_seg.plugin.data", "cat_seg.plugin.evaluation"])
def test_data_and_evaluation_do_not_import_the_model(package: str):
    mine = [i for i in ALL_IMPORTS if within(i.importer, package)]
    assert mine
    assert not shown([i for i in mine if within(i.imported, *THE_MODEL)])
    assert not shown([i for i in mine if i.imported == "cat_seg.plugin"])  # names of the model


def test_the_stand_in_is_used_by_the_plugin_alone_and_knows_no_model():
    users = [i for i in ALL_IMPORTS if within(i.imported, "cat_seg.compat")]
    assert not shown([i for i in users if layer(i.importer) != "plugin"])
    mine = [i for i in ALL_IMPORTS if within(i.importer, "cat_seg.compat")]
    assert not shown([i for i in mine if within(i.imported, *THE_MODEL, "cat_seg.plugin")])


def test_the_diagram_is_up_to_date():
    assert imports.main(["--check"]) == 0, "run: python docs/tools/imports.py"


def test_imports_are_read_wherever_they_stand(tmp_path: Path):
    file = tmp_path / "here.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "from pack import sub, thing\n"
        "from . import neighbour\n"
        "from ..other import name\n"
        "if TYPE_CHECKING:\n    import unseen\n"
        "else:\n    import seen\n"
        "def function():\n    try:\n        import hidden.deep\n    except ImportError: pass\n"
    )
    known = dict.fromkeys(("pack.sub", "pack.inner.neighbour"), file)
    assert [i.imported for i in imports.imports_of("pack.inner.here", file, known)] == [
        *("typing", "pack.sub", "pack", "pack.inner.neighbour", "pack.other", "seen", "hidden.deep")
    ]


def test_importing_the_library_changes_nothing(tmp_path: Path):
    told = run(
        """
from importlib.util import find_spec
def answer():
    spec = find_spec("detectron2")
    return spec and (spec.origin, type(spec.loader))
before, finders = answer(), [*sys.meta_path]
from cat_seg import *
assert callable(CATSeg.from_pretrained) and list_models()
assert answer() == before
assert sys.meta_path == finders, sys.meta_path
wrong = [m for m in sys.modules if m.startswith(("detectron2", "cat_seg.plugin", "cat_seg.compat"))]
assert not wrong, wrong
""",
        tmp_path,
    )
    assert told == ""


def test_importing_the_package_does_not_import_torch(tmp_path: Path):
    assert run("import cat_seg; assert 'torch' not in sys.modules", tmp_path) == ""


def test_the_library_runs_without_what_extras_bring(tmp_path: Path):
    picture = imports.ROOT / "demo" / "images" / "harbour.jpg"
    every = "\n".join(f"import {module}" for module in LIBRARY)
    told = run(
        f"""{REFUSE}
{every}
from cat_seg import CATSeg
finders = [*sys.meta_path]
model = CATSeg.from_pretrained("synthetic", device="cpu")
result = model.predict({str(picture)!r}, ["water", "sky", "red plain circle"])
assert result.labels.ndim == 2 and result.areas()["water"] > 0.1, result.areas()
assert sys.meta_path == finders
""",
        tmp_path,
    )
    assert told == ""

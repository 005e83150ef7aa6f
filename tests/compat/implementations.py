"""detectron2 as it is imported, and the stand-in, beside a real one, under a name of its own."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import detectron2

import cat_seg.compat

STAND_IN_FOLDER = Path(cat_seg.compat.__file__).parent / "detectron2"
IS_REAL = not detectron2.__version__.endswith("+cat_seg")
IMPLEMENTATIONS = ("detectron2", "stand_in") if IS_REAL else ("detectron2",)


class Implementation:
    """One detectron2: `implementation("data.transforms")` imports that module of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name == "stand_in" and name not in sys.modules:
            spec = importlib.util.spec_from_file_location(
                name,
                STAND_IN_FOLDER / "__init__.py",
                submodule_search_locations=[str(STAND_IN_FOLDER)],
            )
            assert spec is not None and spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])

    def __call__(self, module: str) -> ModuleType:
        return importlib.import_module(f"{self.name}.{module}")

    @property
    def is_stand_in(self) -> bool:
        return not IS_REAL or self.name == "stand_in"

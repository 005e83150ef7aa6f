"""detectron2, real or stood in for.

detectron2 is not on PyPI and compiles against the installed torch, yet CAT-Seg needs none of its
compiled code. Where it is installed, it is what runs. Where it is not, `detectron2` means the
stand-in beside this file: a pure-Python subset of its public API, as far as this project uses it.
"""

from __future__ import annotations

import importlib.util
import logging
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

INSTALL_COMMAND = (
    "python -m pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git'"
)
_STAND_IN = Path(__file__).resolve().parent / "detectron2"
_logger = logging.getLogger(__name__)


def ensure_detectron2() -> None:
    """Make `import detectron2` work: leave a real install alone, else offer the stand-in.

    To be called before the first import of detectron2. A real install that is broken is left to
    fail with its own error.

    Raises:
        ImportError: if `detectron2` is nothing but a folder without `__init__.py`.
    """
    spec = importlib.util.find_spec("detectron2")
    if spec is None:
        sys.meta_path.append(StandInFinder())
        _hand_down()
        # Spawned processes would repeat what the first one has said.
        is_first = multiprocessing.current_process().name == "MainProcess"
        level = logging.WARNING if is_first else logging.DEBUG
        _logger.log(
            level,
            "detectron2 is not installed; CAT-Seg runs on its own stand-in. "
            f"To install the real one: {INSTALL_COMMAND}",
        )
    elif spec.origin is None and spec.submodule_search_locations is not None:
        folders = ", ".join(str(Path(p).resolve()) for p in spec.submodule_search_locations)
        raise ImportError(
            f"`import detectron2` finds only a folder that is not a Python package: {folders}. "
            "Rename or move that folder, or run from another one; to use the real detectron2, "
            f"install it: {INSTALL_COMMAND}",
            name="detectron2",
        )


class StandInFinder(MetaPathFinder):
    """Answers for `detectron2` and its modules when no finder before it does.

    The stand-in is given no search path, so that its modules too are asked for here, and a name
    that it lacks gets an error that says what to do.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find `detectron2` and what is in the stand-in's package."""
        root, *parts = fullname.split(".")
        parent = getattr(sys.modules.get("detectron2"), "__loader__", None)
        if root != "detectron2" or (parts and not isinstance(parent, _StandInLoader)):
            return None
        place = _STAND_IN.joinpath(*parts)
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                spec = importlib.util.spec_from_file_location(
                    fullname, file, loader=_StandInLoader(fullname, str(file))
                )
                if spec and spec.submodule_search_locations:
                    spec.submodule_search_locations = []
                return spec
        raise ImportError(_lacks(fullname), name=fullname)


class _StandInLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = _report_missing(module)  # type: ignore[method-assign]
        super().exec_module(module)


def _report_missing(module: ModuleType) -> Callable[[str], Any]:
    """Make a module's `__getattr__` (PEP 562), which answers for names that it lacks."""

    def __getattr__(name: str) -> Any:
        message = _lacks(f"{module.__name__}.{name}")
        # `from package import name` goes on to look for a submodule after an AttributeError, and
        # so reaches the finder. From a plain module it would discard the message.
        if name.startswith("__") or hasattr(module, "__path__"):
            raise AttributeError(message, name=name, obj=module)
        raise ImportError(message, name=module.__name__)

    return __getattr__


def _lacks(name: str) -> str:
    return (
        f"{name} is not part of CAT-Seg's stand-in for detectron2. "
        f"It needs the real detectron2: {INSTALL_COMMAND}"
    )


class _Inheritance:
    """What a process hands down to the ones that it starts: they find the stand-in too.

    `multiprocessing` pickles its settings before target and arguments, so that a spawned process,
    which need not have imported cat_seg, calls `ensure_detectron2` before it meets anything of
    detectron2.
    """

    def __reduce__(self) -> tuple[Callable[[], _Inheritance], tuple[()]]:
        return _inherit, ()


def _inherit() -> _Inheritance:
    ensure_detectron2()
    return _Inheritance()


def _hand_down() -> None:
    # No public way leads to every start method; without these settings a process finds the
    # stand-in when it imports cat_seg.plugin.
    settings = vars(multiprocessing.current_process()).get("_config", {})
    settings["cat_seg.compat"] = _Inheritance()

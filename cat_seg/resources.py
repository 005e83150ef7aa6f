"""Where files lie: what the package brings, and what a user names.

Configs and class lists stand at the top of a clone, where a reader looks for them; setup.py copies
them into the wheel, as `cat_seg/_project`. Shipped weights are inside the package either way.
"""

from __future__ import annotations

import importlib.resources
import os
from pathlib import Path, PurePosixPath

from cat_seg.errors import CATSegError

_PACKAGE = Path(str(importlib.resources.files("cat_seg")))
_IN_WHEEL = _PACKAGE / "_project"  # a clone has none
PROJECT_ROOT = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent


def resource(name: str) -> Path:
    """Find a file that CAT-Seg brings; where this process stands makes no difference.

    Args:
        name: Its path in a clone, such as "datasets/ade150.json" or
            "cat_seg/models/synthetic/model.safetensors".

    Raises:
        CATSegError: if CAT-Seg brings no such file, or not to where it is installed.
    """
    if place := _find_resource(name):
        return place
    raise CATSegError(
        f"{name} is no file that CAT-Seg brings; looked in {PROJECT_ROOT} and {_PACKAGE}. If it is "
        "part of the repository, it is used from a clone."
    )


def user_path(path: str | Path) -> Path:
    """Put the home folder for ~, if it is known: ~x may as well be the name of a file."""
    return Path(os.path.expanduser(path))


def user_file(path: str | Path, relative_to: str | Path | None = None) -> Path:
    """Find a file that a user names: their own, else the one of that name that CAT-Seg brings.

    Args:
        path: An absolute path, one relative to `relative_to`, or a name that `resource` knows.
        relative_to: Folder of a relative path; None for the working directory.

    Raises:
        CATSegError: if there is no such file.
    """
    place = Path(relative_to or "", user_path(path))
    if place.exists():
        return place
    if shipped := _find_resource(str(path)):
        return shipped
    raise CATSegError(
        f"{path} does not exist; looked for {place.absolute()}, and in {PROJECT_ROOT}, for a file "
        "that CAT-Seg brings."
    )


project_file = user_file  # the earlier name


def _find_resource(name: str) -> Path | None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or Path(name).is_absolute():
        return None
    inside = parts[0] == _PACKAGE.name
    place = _PACKAGE.joinpath(*parts[1:]) if inside else PROJECT_ROOT.joinpath(*parts)
    return place if place.exists() else None

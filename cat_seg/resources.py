"""Where configs, class lists and shipped weights lie: in a clone, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_IN_WHEEL = _PACKAGE / "_project"  # made by setup.py; a clone has none
PROJECT_ROOT = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent


def project_file(path: str | Path) -> Path:
    """Find a file that is named relative to the project, such as "datasets/ade150.json".

    Tried in this order: the working directory (or the path itself if it is absolute), the
    project, the package (shipped weights).

    Raises:
        ValueError: if the file is in none of these places.
    """
    places = [Path(path).expanduser(), PROJECT_ROOT / path, _PACKAGE.parent / path]
    for place in places:
        if place.exists():
            return place
    tried = ", ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise ValueError(f"{path} does not exist; tried {tried}.")

"""Show what CAT-Seg finds on this machine, what is missing, and the command that gets it.

cat-seg doctor
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import logging
import os
import platform
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import cat_seg
from cat_seg.cli.terminal import size
from cat_seg.utils.text import printable

_PACKAGES = (
    *("torch", "torchvision", "timm", "open_clip_torch", "huggingface_hub", "safetensors"),
    *("numpy", "pillow", "opencv-python-headless", "opencv-python"),
)
_FOR_DEVELOPERS = ("all", "dev", "docs", "test")  # extras that nobody misses
_VARIABLES = (
    *("CAT_SEG_CACHE", "CAT_SEG_MAX_PIXELS", "CAT_SEG_PLUGINS"),
    *("DETECTRON2_DATASETS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "NO_PROXY"),
)
_SCRIPTS = {
    "Latin": "Añ",
    "Cyrillic": "Кот",
    "Greek": "γάτα",
    "Chinese": "猫",
    "Arabic": "قط",
    "Devanagari": "बिल्ली",
    "emoji": "🐈",
}
_SECONDS = 5  # without an answer


def main(arguments: Sequence[str]) -> int:
    """Print the report; the exit code is 0, whatever it says."""
    parser = argparse.ArgumentParser(
        prog="cat-seg doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--online", action="store_true", help="open a connection, to see whether models can be had"
    )
    args = parser.parse_args(arguments)
    report = examine(online=args.online)
    if args.json:
        print(json.dumps(report, indent=1))
        return 0
    for title, lines in report.items():
        print(f"{title}:")
        for name, value in lines.items():
            shown = ", ".join(value) if isinstance(value, list) else str(value)
            print(printable(f"  {name:<24} {shown}").rstrip())
    return 0


def examine(*, online: bool = False) -> dict[str, dict[str, Any]]:
    """Look at this machine; a look that fails is told in its place.

    Args:
        online: whether a connection may be opened.

    Returns:
        sections of names and what was found.
    """
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "CAT-Seg": _program,
        "packages": _packages,
        "detectron2": _detectron2,
        "device": _device,
        "memory": _memory,
        "caches": _caches,
        "optional": _optional,
        "names drawn in": _fonts,
        "network": lambda: _network(online),
    }
    report = {}
    for title, look in sections.items():
        try:
            report[title] = look()
        except Exception as error:  # a broken package may raise anything; this is where it is told
            report[title] = {"problem": f"{type(error).__name__}: {error}"}
    return report


def _program() -> dict[str, Any]:
    return {
        "version": cat_seg.__version__,
        "folder": str(Path(cat_seg.__file__).parent),
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        **{name: value for name in _VARIABLES if (value := os.environ.get(name)) is not None},
    }


def _packages() -> dict[str, Any]:
    return {name: version for name in _PACKAGES if (version := _version(name))}


def _detectron2() -> dict[str, Any]:
    spec = importlib.util.find_spec("detectron2")
    ours = Path(cat_seg.__file__).parent
    if spec is None or (spec.origin and ours in Path(spec.origin).parents):
        return {"installed": "no; training and evaluation use the stand-in that ships"}
    if spec.origin is None:
        folders = ", ".join(spec.submodule_search_locations or ())
        return {"installed": f"no, but a folder of that name is in the way: {folders}"}
    found = {"installed": _version("detectron2") or "yes", "folder": str(Path(spec.origin).parent)}
    try:
        importlib.import_module("detectron2._C")  # compiled, against one version of torch
    except Exception as error:
        found["problem"] = f"its compiled part cannot be loaded, build it anew ({error})"
    return found


def _device() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"CUDA of torch": torch.version.cuda or "none, a build for CPU"}
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        found[f"cuda:{i}"] = f"{name}, {size(free)} free of {size(total)}"
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    found["cpu"] = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    found["capability"] = torch.backends.cpu.get_cpu_capability()
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    found["chosen"] = "cuda" if cuda else "mps" if mps else "cpu"
    return found


def _memory() -> dict[str, Any]:
    if not hasattr(os, "sysconf"):  # Windows
        return {"total": "unknown"}
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return {"total": size(total)}
    return {"total": size(total), "free": size(page * os.sysconf("SC_AVPHYS_PAGES"))}


def _caches() -> dict[str, Any]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from cat_seg.utils.files import cache_folder

    folder = cache_folder()
    parts = sorted(folder.iterdir()) if folder.is_dir() else []
    places = [folder, *(part for part in parts if part.is_dir()), Path(HF_HUB_CACHE)]
    return {str(place): _size_of(place) if place.is_dir() else "not there" for place in places}


def _optional() -> dict[str, Any]:
    """List the extras of the package, each with what is missing of it."""
    extras: dict[str, list[str]] = defaultdict(list)
    for requirement in metadata.requires("cat-seg") or ():
        found = re.match(r"([\w.-]+)([^;]*);.*extra == ['\"]([\w-]+)['\"]", requirement)
        if found and found[1] != "cat-seg" and found[3] not in _FOR_DEVELOPERS:
            missing = "" if _version(found[1]) else f"{found[1]}{found[2].strip()}"
            extras[found[3]].append(missing)
    return {
        extra: "missing: pip install " + " ".join(f"'{one}'" for one in missing if one)
        if any(missing)
        else "installed"
        for extra, missing in extras.items()
    }


def _fonts() -> dict[str, Any]:
    from cat_seg.fonts import can_draw

    class Kept(logging.Handler):  # the library warns once of each script, and says what helps
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    told: list[str] = []
    found: dict[str, Any] = {}
    logger, handler = logging.getLogger("cat_seg.fonts"), Kept()
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        for script, text in _SCRIPTS.items():
            told.clear()
            found[script] = "yes" if can_draw(text) else " ".join(["no.", *told])
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
    return found


def _network(online: bool) -> dict[str, Any]:
    from huggingface_hub import constants

    found: dict[str, Any] = {"models come from": constants.ENDPOINT}
    if constants.HF_HUB_OFFLINE:
        found["HF_HUB_OFFLINE"] = "is set: nothing is fetched from there"
    if not online:
        found["reached"] = "not tried; --online does"
        return found
    try:
        with urlopen(constants.ENDPOINT, timeout=_SECONDS):
            found["reached"] = "yes"
    except HTTPError as error:
        found["reached"] = f"yes, but it answers {error.code}"
    except (OSError, ValueError) as error:
        found["reached"] = f"no ({error}); give a local file instead: --model FILE"
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _size_of(folder: Path) -> str:
    """Add up the files below a folder; links are not followed."""
    count = total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            if path.is_file() and not path.is_symlink():
                count += 1
                total += path.stat().st_size
    return f"{size(total)} in {count} files"

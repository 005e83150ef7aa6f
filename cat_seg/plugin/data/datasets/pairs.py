"""Images and their label maps, matched by name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Set
from pathlib import Path
from typing import NamedTuple

from cat_seg.errors import CATSegError
from cat_seg.images import SUFFIXES as IMAGE_SUFFIXES
from cat_seg.label_maps import image_size
from cat_seg.label_rules import LabelRule

_LOSSY = frozenset({".jpg", ".jpeg"})
LABEL_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp"}) | _LOSSY  # JPEGs: to be refused


class Pair(NamedTuple):
    """An image and its label map; the image may be missing."""

    image: Path
    label: Path


class Matched(NamedTuple):
    """What was found in two folders."""

    pairs: list[Pair]
    problems: list[str]  # files without a partner, names that stand for two files


def files_by_stem(folder: Path, suffixes: Set[str]) -> dict[str, Path]:
    """List the folder's files with one of the suffixes by their stem, sorted.

    Hidden files (.DS_Store, ._name.png, parts of an interrupted write) are no data.
    """
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return {path.stem: path for path in names if path.suffix.lower() in suffixes}


def find_pairs(images: Path, labels: Path, label_suffixes: Set[str]) -> list[Pair]:
    """Pair each label map of a folder with the image of its name, in the order of names.

    The label maps decide: images without one are not part of the split. Where the image is
    missing, the pair names the .jpg that should be there, so that reading it says so.
    """
    found = files_by_stem(images, IMAGE_SUFFIXES)
    return [
        Pair(found.get(stem, images / f"{stem}.jpg"), label)
        for stem, label in files_by_stem(labels, label_suffixes).items()
    ]


def match_files(
    images: Path,
    labels: Path,
    *,
    image_suffix: str = "",
    label_suffix: str = "",
    listed: Iterable[str] | None = None,
) -> Matched:
    """Match images and label maps of two folders and their sub-folders.

    An image and its label map have the same path below their folders, but for their suffixes. The
    folders may be the same, or one inside the other.

    Args:
        images, labels: the folders.
        image_suffix, label_suffix: how the names end, with or without the extension: "_mask",
            "_gtFine_labelIds.png", ".png"; empty for any known extension.
        listed: names of the split, see `read_split`; None for all that are there.
    """
    label_files = _by_name(labels, label_suffix, LABEL_SUFFIXES, without=images)
    if any(path.suffix.lower() not in _LOSSY for paths in label_files.values() for path in paths):
        lossless = {
            name: [path for path in paths if path.suffix.lower() not in _LOSSY]
            for name, paths in label_files.items()
        }
        label_files = {name: paths for name, paths in lossless.items() if paths}
    taken = {path for paths in label_files.values() for path in paths} if label_suffix else set()
    image_files = _by_name(images, image_suffix, IMAGE_SUFFIXES, without=labels, taken=taken)
    problems = [
        f"{' and '.join(map(str, paths))}: {len(paths)} {what} of one name; keep one, or tell them "
        f"apart by {key}"
        for files, what, key in (
            (image_files, "images", "IMAGE_SUFFIX"),
            (label_files, "label maps", "LABEL_SUFFIX"),
        )
        for paths in files.values()
        if len(paths) > 1
    ]
    if listed is None:
        names: list[str] = sorted(image_files | label_files)
    else:
        names, missing = _chosen(listed, set(image_files) | set(label_files), image_suffix)
        problems += [f"{name}: in LIST, but no image is called so" for name in missing]
    pairs = []
    for name in names:
        image, label = image_files.get(name), label_files.get(name)
        if image and label:
            pairs.append(Pair(image[0], label[0]))
        elif image:
            problems.append(f"{image[0]}: no label map in {labels} of that name")
        elif label:
            problems.append(f"{label[0]}: no image in {images} of that name")
    return Matched(pairs, problems)


def read_split(path: Path) -> list[str]:
    """Read the names of a split, one a line; of several columns the first is taken.

    Raises:
        CATSegError: if the file cannot be read, or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CATSegError(f"{path}: cannot be read as a list of names ({error})") from error
    names = [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise CATSegError(f"{path}: no names; expected one a line.")
    return names


def pair_problem(pair: Pair, rule: LabelRule) -> str | None:
    """Say what is wrong with a pair: unreadable, different sizes, a label out of range."""
    try:
        image, labels = image_size(pair.image), rule.read(pair.label)
    except CATSegError as error:
        return str(error)
    return size_problem(pair, image, labels.shape)


def size_problem(pair: Pair, image: tuple[int, ...], labels: tuple[int, ...]) -> str | None:
    """Say that an image and its label map have different sizes (height, width), if they have."""
    if image == labels:
        return None
    return (
        f"{pair.label}: {labels[0]} x {labels[1]} pixels, but its image "
        f"{pair.image} has {image[0]} x {image[1]} (height x width)"
    )


def _by_name(
    folder: Path,
    suffix: str,
    extensions: Collection[str],
    *,
    without: Path,
    taken: Collection[Path] = (),
) -> dict[str, list[Path]]:
    """List files by their path below the folder, without suffix."""
    known = Path(suffix).suffix.lower() in extensions or suffix.lower() in extensions
    endings = [suffix] if known else [suffix + extension for extension in sorted(extensions)]
    other = None if _same(folder, without) else os.path.realpath(without)
    found = defaultdict(list)
    for path in _walk(folder, other):
        relative = path.relative_to(folder).as_posix()
        ending = next((e for e in endings if relative.lower().endswith(e.lower())), None)
        if ending and path not in taken:
            found[relative[: -len(ending)]].append(path)
    return dict(found)


def _walk(folder: Path, without: str | None) -> Iterator[Path]:
    """Find all files below a folder, sorted, but hidden ones and those below another folder."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or real == without:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(files) if not name.startswith("."))


def _chosen(
    listed: Iterable[str], there: Collection[str], suffix: str
) -> tuple[list[str], list[str]]:
    """Find the names that a list means: paths or their last parts, also with their suffixes."""
    ends = defaultdict(list)
    for name in there:
        parts = name.split("/")
        for i in range(len(parts)):
            ends["/".join(parts[i:])].append(name)
    names, missing = [], []
    for text in listed:
        parts = text.replace("\\", "/").strip("/").split("/")
        tries = ["/".join(parts[i:]) for i in range(len(parts))]
        tries = [form for one in tries for form in (one, os.path.splitext(one)[0])]
        tries += [one.removesuffix(suffix) for one in tries if suffix and one.endswith(suffix)]
        match = next((ends[one] for one in tries if len(ends.get(one, ())) == 1), None)
        if match:
            names += match
        else:
            missing.append(text)
    return list(dict.fromkeys(names)), missing


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)

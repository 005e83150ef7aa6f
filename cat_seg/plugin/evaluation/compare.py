"""Evaluations of the same data beside each other: a web page, and a folder of its pictures.

K classes of a dataset, N runs, H x W pixels of an image.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from cat_seg.errors import CATSegError
from cat_seg.images import read_image
from cat_seg.label_maps import read_label_map
from cat_seg.label_rules import IGNORED, LabelRule
from cat_seg.palette import name_colors
from cat_seg.plugin.evaluation.metrics import MIOU_DEFINITIONS
from cat_seg.plugin.evaluation.report import most_confused, render, shrink
from cat_seg.plugin.run_folder import RunFolder
from cat_seg.trust.text import read_json
from cat_seg.utils.files import atomic_write, write_picture

logger = logging.getLogger(__name__)

PICTURE_SIDE = 1024  # pixels of what is shown enlarged
SHOWN_PAIRS = 20
_THREADS = 4  # each with an image in memory
# What a run did with a pixel, from the first run to another: a colour each.
_CHANGES = {"better": (30, 160, 90), "worse": (220, 60, 40), "both wrong": (120, 120, 120)}
_WRONG = (220, 60, 40)


@dataclasses.dataclass(frozen=True)
class SavedResult:
    """What an evaluation of one dataset left in a folder.

    Attributes:
        folder: of its results.json.
        figures: contents of that.
        images: of each image, by its path below the folder of all: "file_name", "label_map",
            "prediction", "mIoU", "pACC".
        rule: what the label maps mean.
        confusion: (K, K + 1), see `confusion_matrix`.
    """

    folder: Path
    figures: dict[str, Any]
    images: dict[str, dict[str, Any]]
    rule: LabelRule
    confusion: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> SavedResult:
        """Read a folder that `save_result` wrote.

        Raises:
            CATSegError: if it is none, or was written by a version that said less.
        """
        figures = read_json(folder / "results.json")
        try:
            images = figures["per_image"]
            rule = LabelRule.from_json(figures["label_rule"])
            common = os.path.commonpath([os.path.dirname(one["file_name"]) for one in images])
            names = {os.path.relpath(one["file_name"], common or "."): one for one in images}
            with np.load(folder / "confusion_matrix.npz", allow_pickle=False) as arrays:
                confusion = arrays["confusion"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise CATSegError(
                f"{folder}: its results cannot be compared ({error!r}); evaluate once more into "
                "the same folder, where what is done is kept."
            ) from error
        return cls(folder, figures, names, rule, confusion)

    @property
    def classes(self) -> list[str]:
        """Names of the K classes."""
        return [row["class"] for row in self.figures["classes"]]


def read_run(folder: Path) -> dict[str, SavedResult]:
    """Read what an evaluation wrote, by dataset; `folder` is its output, or that of one dataset.

    Raises:
        CATSegError: if there is none.
    """
    found = [folder] if (folder / "confusion_matrix.npz").is_file() else []
    found += sorted(path.parent for path in folder.glob("inference/*/results.json"))
    if not found:
        raise CATSegError(
            f"{folder}: no evaluation was written here; expected what `cat-seg evaluate` or "
            "`train_net.py` has as its OUTPUT_DIR."
        )
    results = [SavedResult.read(path) for path in found]
    return {result.figures["dataset"]: result for result in results}


def write_comparison(path: Path, folders: Sequence[Path], names: Sequence[str] = ()) -> None:
    """Write a page of one evaluation, or of several: differences are to the first.

    Pictures go into a folder beside the page, "<its name>_files".

    Args:
        path: The page.
        folders: What `read_run` reads, one for each run.
        names: What the runs are called; their folders' names by default.

    Raises:
        CATSegError: if the runs have no dataset in common, or not the same classes.
    """
    runs = [read_run(folder) for folder in folders]
    names = list(names) or _run_names(folders)
    if len(names) != len(runs):
        raise CATSegError(f"{len(names)} names for {len(runs)} runs; expected as many.")
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    if not shared:
        every = "; ".join(f"{n}: {', '.join(run)}" for n, run in zip(names, runs, strict=True))
        raise CATSegError(f"The runs have no dataset in common ({every}).")
    lacking = sorted({name for run in runs for name in run} - set(shared))
    warnings = [f"{name} is not in all runs, and left out." for name in lacking]
    pictures = path.with_name(f"{path.stem}_files")
    page = render(
        "compare.html.jinja",
        title=" and ".join(names) if len(names) < 3 else f"{len(names)} runs",
        names=names,
        files=pictures.name,
        folders=[str(folder) for folder in folders],
        warnings=warnings,
        differences=_settings(folders),
        definitions=MIOU_DEFINITIONS,
        averages=("mIoU", *(key for key in MIOU_DEFINITIONS if key != "mIoU"), "mACC", "pACC"),
        changes=_CHANGES,
        sections=[
            _section(dataset, [run[dataset] for run in runs], names, pictures / str(number))
            for number, dataset in enumerate(shared)
        ],
    )
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")


def _run_names(folders: Sequence[Path]) -> list[str]:
    """Call runs by their folders; by the whole path where two are called the same."""
    short = [folder.resolve().name for folder in folders]
    return [
        name if short.count(name) == 1 else str(folder)
        for name, folder in zip(short, folders, strict=True)
    ]


def _settings(folders: Sequence[Path]) -> list[list[str]]:
    """Say what of weights, words and settings differs from the first run, for each other one."""
    records = [RunFolder(folder, "evaluation") for folder in folders]
    if not all(record.facts for record in records):
        return [[] for _ in records[1:]]
    return [records[0].differences(record.facts or {}) for record in records[1:]]


def _section(
    dataset: str, results: Sequence[SavedResult], names: Sequence[str], pictures: Path
) -> dict[str, Any]:
    """Gather what the template shows of one dataset, and draw its images."""
    first = results[0]
    for result, name in zip(results, names, strict=True):
        if len(result.classes) != len(first.classes) or result.rule != first.rule:
            raise CATSegError(
                f"{dataset}: {names[0]} has {len(first.classes)} classes and {name} "
                f"{len(result.classes)}, or labels that mean something else; expected the same "
                "classes, in whatever words."
            )
    shown = [name for name in first.images if all(name in result.images for result in results)]
    notes = []
    if any(len(result.images) != len(shown) for result in results):
        counts = ", ".join(str(len(result.images)) for result in results)
        notes.append(
            f"The runs have not the same images ({counts}; {len(shown)} in common): the figures "
            "of all images are not comparable."
        )
    elif len({result.figures["sha256"].get("data") for result in results}) > 1:
        notes.append("Images or label maps have changed between the runs.")
    for result, name in zip(results, names, strict=True):
        notes += [f"{name}: {result.figures['remark']}."] if result.figures["remark"] else []
    colors = name_colors(first.classes)
    scenes = thread_map(
        partial(_scene, results=results, colors=colors, folder=pictures),
        shown,
        range(len(shown)),
        max_workers=_THREADS,
        desc=f"Drawing {dataset}",
        unit="image",
        disable=None,
    )
    return {
        "dataset": dataset,
        "notes": notes,
        "figures": [result.figures for result in results],
        "classes": _class_rows(results),
        "confused": [most_confused(r.confusion, r.classes, SHOWN_PAIRS) for r in results],
        "counts": _counts(scenes, len(results)),
        "data": {
            "names": list(names),
            "classes": first.classes,
            "colors": [f"rgb{tuple(color)}" for color in colors.tolist()],
            "scenes": scenes,
        },
    }


def _class_rows(results: Sequence[SavedResult]) -> list[dict[str, Any]]:
    """Make a row of each class: names, pixels, IoU and accuracy of each run, differences."""
    rows = []
    for k, (one, *others) in enumerate(
        zip(*(result.figures["classes"] for result in results), strict=True)
    ):
        others_named = [row["class"] for row in others if row["class"] != one["class"]]
        rows.append(
            {
                "index": k,
                "name": " / ".join(dict.fromkeys([one["class"], *others_named])),
                "first": one["class"],
                "pixels": one["pixels"],
                "iou": [row["IoU"] for row in (one, *others)],
                "differences": [_less(row["IoU"], one["IoU"]) for row in others],
            }
        )
    return rows


def _counts(scenes: Sequence[dict[str, Any]], runs: int) -> list[dict[str, int]]:
    """Count the images that are better, worse and equal, for each run but the first."""
    return [
        {
            "better": sum((scene["differences"][i] or 0) > 0 for scene in scenes),
            "worse": sum((scene["differences"][i] or 0) < 0 for scene in scenes),
            "equal": sum((scene["differences"][i] or 0) == 0 for scene in scenes),
        }
        for i in range(runs - 1)
    ]


def _scene(
    name: str, number: int, results: Sequence[SavedResult], colors: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Draw an image and its label maps as files, and say what the page needs of it."""
    rows = [result.images[name] for result in results]
    scores = [row["mIoU"] for row in rows]
    scene: dict[str, Any] = {
        "name": name,
        "miou": scores,
        "pacc": [row["pACC"] for row in rows],
        "differences": [_less(score, scores[0]) for score in scores[1:]],
        "classes": [],
        "layers": [],
    }
    try:
        photo = read_image(rows[0]["file_name"])
        truth = results[0].rule.read(rows[0]["label_map"])
        maps = [
            read_label_map(result.folder / row["prediction"])
            for result, row in zip(results, rows, strict=True)
        ]
    except (KeyError, CATSegError) as error:  # after it was evaluated
        logger.warning("%s is not shown: %s", name, error)
        return scene | {"problem": str(error)}
    if any(labels.shape != truth.shape for labels in maps):
        return scene | {"problem": "its label maps have not the same size any more"}
    photo, truth, *maps = shrink(photo, truth, *maps, side=PICTURE_SIDE)
    counts = np.bincount(
        np.concatenate([x[(x >= 0) & (x < len(colors))] for x in (truth, *maps)]),
        minlength=len(colors),
    )
    stem = folder / f"{number:05d}"
    layers: dict[str, Image.Image] = {"truth": overlay(truth, colors)}
    layers |= {f"run{i}": overlay(labels, colors) for i, labels in enumerate(maps)}
    known = truth != IGNORED
    right = [labels == truth for labels in maps]
    if len(maps) == 1:
        layers["change0"] = overlay(np.where(known & ~right[0], 0, -1), np.array([_WRONG], "u1"))
    for i in range(1, len(maps)):
        change = np.select(
            [~known, right[i] & ~right[0], right[0] & ~right[i], ~right[0]], [-1, 0, 1, 2], -1
        )
        layers[f"change{i}"] = overlay(change, np.array([*_CHANGES.values()], np.uint8))
    _save(Image.fromarray(photo), Path(f"{stem}_photo.jpg"))
    for layer, picture in layers.items():
        _save(picture, Path(f"{stem}_{layer}.png"))
    return scene | {
        "stem": f"{folder.name}/{stem.name}",
        "size": [photo.shape[1], photo.shape[0]],
        "classes": [int(k) for k in np.argsort(-counts, kind="stable") if counts[k]],
        "layers": list(layers),
    }


def overlay(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Paint classes on a transparent ground.

    Args:
        labels: (H, W) integers; a value outside 0..K-1 is transparent.
        colors: (K, 3) uint8, RGB.

    Returns:
        A picture with a palette, small as a file; RGBA where it has more than 255 classes.
    """
    inside = (labels >= 0) & (labels < len(colors))
    found, index = np.unique(np.where(inside, labels, -1), return_inverse=True)
    table = np.zeros((len(found), 4), np.uint8)
    table[found >= 0, :3] = colors[found[found >= 0]]
    table[found >= 0, 3] = 255
    index = index.reshape(labels.shape)
    if len(found) > 256:
        return Image.fromarray(table[index])
    picture = Image.fromarray(index.astype(np.uint8)).convert("P")
    picture.putpalette(table[:, :3].tobytes())
    picture.info["transparency"] = table[:, 3].tobytes()
    return picture


def _save(picture: Image.Image, path: Path) -> None:
    write_picture(path, picture, quality=85)  # of JPEG; others know none


def _less(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other

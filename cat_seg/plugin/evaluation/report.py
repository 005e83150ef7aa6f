"""An evaluation as one web page that needs nothing else: figures, confusions, pictures.

K classes of a dataset, H x W pixels of an image.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cat_seg.drawing import blend
from cat_seg.errors import CATSegError
from cat_seg.images import read_image
from cat_seg.label_maps import read_label_map
from cat_seg.palette import name_colors
from cat_seg.plugin.evaluation.metrics import MIOU_DEFINITIONS
from cat_seg.plugin.evaluation.summary import BenchmarkResult
from cat_seg.utils.files import atomic_write

logger = logging.getLogger(__name__)

SHOWN_PAIRS = 20
SHOWN_IMAGES = 4  # best, and as many worst
SHOWN_NAMES = 8  # in the legend of an image
PICTURE_SIDE = 640  # pixels
AVERAGES = ("mIoU_2021", "fwIoU", "mACC", "pACC")  # columns beside mIoU


def write_report(
    path: Path,
    title: str,
    about: str,
    benchmarks: Sequence[BenchmarkResult],
    warnings: Sequence[str],
) -> None:
    """Write the page.

    Args:
        path: File to write.
        title: Title of the page.
        about: What was evaluated, beneath the title.
        benchmarks: One result of each dataset.
        warnings: What the reader must know about all of it.
    """
    page = render(
        "report.html.jinja",
        title=title,
        about=about,
        warnings=warnings,
        averages=AVERAGES,
        definitions=MIOU_DEFINITIONS,
        sections=[_section(benchmark) for benchmark in benchmarks],
    )
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")


def render(template: str, **values: Any) -> str:
    """Fill in a template of this folder; names of classes and files may hold anything."""
    environment = Environment(
        loader=PackageLoader("cat_seg.plugin.evaluation", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    return environment.get_template(template).render(**values)


def most_confused(confusion: np.ndarray, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Find the pairs of classes that share the most wrong pixels.

    Args:
        confusion: (K, K + 1), rows predictions, columns truth, the last of them ignored.
        names: Names of the K classes.
        count: Number of pairs at most.

    Returns:
        [{"truth", "predicted", "pixels", "share"}], share of the true class's pixels.
    """
    wrong = confusion[:, :-1].copy()
    truth = wrong.sum(0)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    return [
        {
            "truth": names[true],
            "predicted": names[predicted],
            "pixels": int(wrong[predicted, true]),
            "share": float(wrong[predicted, true] / truth[true]),
        }
        for predicted, true in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[predicted, true]
    ]


def _section(benchmark: BenchmarkResult) -> dict[str, Any]:
    """Gather what the template shows of one benchmark."""
    result, figures = benchmark.result, benchmark.figures
    tiles = [(_percent(figures[key]), key) for key in MIOU_DEFINITIONS]
    if benchmark.published is not None:
        tiles.append((_percent(benchmark.published), "published mIoU"))
    if benchmark.baseline is not None:
        tiles.append((_percent(benchmark.baseline), "mIoU of its CLIP without aggregator"))
    tiles += [(_percent(figures[key]), key) for key in ("fwIoU", "mACC", "pACC")]
    tiles.append((f"{len(result.images):,}", f"of {result.expected:,} images"))
    left_out = [f"{name} was left out: {why}" for name, why in sorted(result.left_out.items())]
    # Classes with ground truth by falling IoU, then the others.
    classes = sorted(result.classes(), key=lambda row: (row["IoU"] is None, -(row["IoU"] or 0.0)))
    by_score = sorted(
        (name for name, scores in result.images.items() if not np.isnan(scores["mIoU"])),
        key=lambda name: (-result.images[name]["mIoU"], name),
    )
    best = by_score[:SHOWN_IMAGES]
    worst = by_score[len(best) :][-SHOWN_IMAGES:][::-1]
    return {
        "benchmark": benchmark,
        "figures": figures,
        "tiles": tiles,
        "notes": [result.remark] * bool(result.remark) + left_out,
        "classes": classes,
        "scored": [row["IoU"] for row in classes if row["IoU"] is not None],
        "images": by_score + sorted(set(result.images) - set(by_score)),
        "confused": most_confused(result.confusion, result.class_names, SHOWN_PAIRS),
        "galleries": {
            "Best images": [_image(name, benchmark) for name in best],
            "Worst images": [_image(name, benchmark) for name in worst],
        },
    }


def _image(name: str, benchmark: BenchmarkResult) -> dict[str, Any]:
    """Draw an image, its ground truth and its prediction, and list their most common classes."""
    names = benchmark.result.class_names
    shown = {"name": Path(name).name, "scores": benchmark.result.images[name], "pictures": {}}
    try:
        photo = read_image(name)
        truth_file, prediction_file = benchmark.result.label_maps[name]
        truth, predicted = benchmark.result.rule.read(truth_file), read_label_map(prediction_file)
    except CATSegError as error:  # after it was evaluated, maybe by the run that was resumed
        logger.warning("not shown in the report: %s", error)
        return shown
    photo, truth, predicted = shrink(photo, truth, predicted, side=PICTURE_SIDE)
    counts = np.bincount(
        np.concatenate([x[(x >= 0) & (x < len(names))] for x in (truth, predicted)]),
        minlength=len(names),
    )
    largest = [int(k) for k in np.argsort(-counts, kind="stable")[:SHOWN_NAMES] if counts[k]]
    colors = name_colors(names)
    return shown | {
        "pictures": {
            "image": _data_uri(photo),
            "truth": _data_uri(blend(photo, truth, colors)),
            "prediction": _data_uri(blend(photo, predicted, colors)),
        },
        "legend": [(names[k], f"rgb{tuple(colors[k].tolist())}") for k in largest],
    }


def shrink(photo: np.ndarray, *labels: np.ndarray, side: int) -> list[np.ndarray]:
    """Resize an image (H, W, 3) and label maps (H, W) to at most `side` pixels; labels as int32."""
    height, width = labels[0].shape
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    maps = [cv2.resize(x.astype(np.int32), size, interpolation=cv2.INTER_NEAREST) for x in labels]
    return [cv2.resize(photo, size, interpolation=cv2.INTER_AREA), *maps]


def _data_uri(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _percent(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.2f}"

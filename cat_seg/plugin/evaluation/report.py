"""An evaluation as one web page that needs nothing else: figures, confusions, pictures.

K classes of a data set, H x W pixels of an image.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from cat_seg.drawing import blend
from cat_seg.images import read_image
from cat_seg.label_maps import read_label_map
from cat_seg.palette import name_colors
from cat_seg.plugin.evaluation.metrics import MIOU_DEFINITIONS
from cat_seg.plugin.evaluation.report_style import STYLE
from cat_seg.plugin.evaluation.summary import Outcome
from cat_seg.utils.files import atomic_write

logger = logging.getLogger(__name__)

SHOWN_PAIRS = 20
SHOWN_IMAGES = 4  # best, and as many worst
SHOWN_NAMES = 8  # in the legend of an image
PICTURE_SIDE = 400  # pixels


def write_report(
    path: Path, title: str, about: str, outcomes: Sequence[Outcome], warnings: Sequence[str]
) -> None:
    """Write the page.

    Args:
        path: file to write.
        title: of the page.
        about: what was evaluated, beneath the title.
        outcomes: one of each data set.
        warnings: what the reader must know about all of it.
    """
    definitions = "; ".join(f"{name} is over {text}" for name, text in MIOU_DEFINITIONS.items())
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{escape(title)}</h1><p class="faint"><code>{escape(about)}</code></p>'
        f'{_notes(warnings)}<div class="card">{_overview(outcomes)}</div>'
        f'<p class="faint">All figures in percent. {escape(definitions)}. The tick in a bar is '
        "the published mIoU.</p>"
        f"{''.join(map(_section, outcomes))}</main></body></html>\n"
    )
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")


def most_confused(confusion: np.ndarray, names: Sequence[str], count: int) -> list[dict[str, Any]]:
    """The pairs of classes that share the most wrong pixels.

    Args:
        confusion: (K, K + 1), rows predictions, columns truth, the last of them ignored.
        names: of the K classes.
        count: pairs at most.

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


def _overview(outcomes: Sequence[Outcome]) -> str:
    keys = ("mIoU_2021", "fwIoU", "mACC", "pACC")
    rows = []
    for outcome in outcomes:
        result, figures = outcome.result, outcome.figures
        remark = f' <span class="badge">{escape(result.remark)}</span>' if result.remark else ""
        rows.append(
            (
                f'<a href="#{escape(result.dataset)}">{escape(outcome.title)}</a>{remark}',
                f"{len(result.images):,}",
                f"<b>{_figure(figures['mIoU'])}</b>",
                _bullet(figures["mIoU"], outcome.published),
                _figure(outcome.published),
                _difference(outcome.difference),
                *(_figure(figures[key]) for key in keys),
            )
        )
    head = ("benchmark", "images", "mIoU", "", "published", "difference", *keys)
    return _table(head, rows, wide=3)


def _section(outcome: Outcome) -> str:
    result, figures = outcome.result, outcome.figures
    tiles = [(key, _figure(figures[key])) for key in MIOU_DEFINITIONS]
    if outcome.published is not None:
        tiles.append(("published mIoU", _figure(outcome.published)))
    tiles += [(key, _figure(figures[key])) for key in ("fwIoU", "mACC", "pACC")]
    tiles.append((f"of {result.expected:,} images", f"{len(result.images):,}"))
    left_out = [f"{name} was left out: {why}" for name, why in sorted(result.left_out.items())]
    by_score = sorted(
        (name for name, scores in result.images.items() if not np.isnan(scores["mIoU"])),
        key=lambda name: (-result.images[name]["mIoU"], name),
    )
    best = by_score[:SHOWN_IMAGES]
    worst = by_score[len(best) :][-SHOWN_IMAGES:][::-1]
    registered = result.dataset if result.dataset != outcome.title else ""
    return (
        f'<section id="{escape(result.dataset)}"><div class="head"><h2>{escape(outcome.title)}</h2>'
        f'<span class="faint">{escape(registered)}</span></div>'
        + _notes([result.remark] * bool(result.remark) + left_out)
        + '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{value or "–"}</b><span>{escape(key)}</span></div>'
            for key, value in tiles
        )
        + f'</div><div class="columns"><div class="card"><h3>IoU of each class</h3>'
        f'{_classes(outcome)}</div><div class="card"><h3>Most confused</h3>{_confused(outcome)}'
        "</div></div>"
        + _gallery("Best images", best, outcome)
        + _gallery("Worst images", worst, outcome)
        + "</section>"
    )


def _classes(outcome: Outcome) -> str:
    """Classes with ground truth by falling IoU, then the others."""
    classes = outcome.result.classes()
    classes.sort(key=lambda c: (c["IoU"] is None, -(c["IoU"] or 0.0)))
    rows = [
        (
            escape(c["class"]),
            _figure(c["IoU"]),
            "" if c["IoU"] is None else _bullet(c["IoU"]),
            _figure(c["ACC"]),
            f"{c['pixels']:,}",
        )
        for c in classes
    ]
    known = [c["IoU"] for c in classes if c["IoU"] is not None]
    columns = "".join(
        f'<rect class="fill" x="{i}" y="{100 - iou:.1f}" width=".8" height="{iou:.1f}"/>'
        for i, iou in enumerate(known)
    )
    return (
        f'<svg class="skyline" viewBox="0 0 {max(1, len(known))} 100" preserveAspectRatio="none" '
        f'role="img" aria-label="IoU of the classes, falling">'
        f'<rect class="track" width="100%" height="100%"/>{columns}</svg><div class="scroll">'
        + _table(("class", "IoU", "", "accuracy", "pixels"), rows, wide=2)
        + "</div>"
    )


def _confused(outcome: Outcome) -> str:
    result = outcome.result
    rows = [
        (
            f'{escape(pair["truth"])} <span class="faint">→</span> {escape(pair["predicted"])}',
            f"{100 * pair['share']:.1f}",
            _bullet(100 * pair["share"], kind="loss"),
            f"{pair['pixels']:,}",
        )
        for pair in most_confused(result.confusion, result.class_names, SHOWN_PAIRS)
    ]
    head = ("truth → prediction", "% of truth", "", "pixels")
    return f'<div class="scroll">{_table(head, rows, wide=2)}</div>'


def _gallery(title: str, names: Sequence[str], outcome: Outcome) -> str:
    if not names:
        return ""
    figures = "".join(_image(name, outcome) for name in names)
    return f'<div class="card"><h3>{title}</h3><div class="images">{figures}</div></div>'


def _image(name: str, outcome: Outcome) -> str:
    """An image, its ground truth and its prediction side by side, and their classes."""
    scores = outcome.result.images[name]
    caption = f"mIoU {_figure(scores['mIoU'])}, pixel accuracy {_figure(scores['pACC'])}"
    caption = f'{escape(Path(name).name)} <span class="faint">{caption}</span>'
    try:
        photo = read_image(name)
        truth, predicted = (read_label_map(path) for path in outcome.label_maps[name])
    except ValueError as error:  # after it was evaluated, maybe by the run that was resumed
        logger.warning("not shown in the report: %s", error)
        return f"<figure><figcaption>{caption}</figcaption>not readable any more</figure>"
    photo, truth, predicted = _shrunk(photo, truth, predicted)
    names = outcome.result.class_names
    colors = name_colors(names)
    strip = "".join(
        f'<div><img alt="{what}" src="{_data_uri(picture)}"><span>{what}</span></div>'
        for what, picture in (
            ("image", photo),
            ("truth", blend(photo, truth, colors)),
            ("prediction", blend(photo, predicted, colors)),
        )
    )
    counts = np.bincount(
        np.concatenate([x[x < len(names)] for x in (truth, predicted)]), minlength=len(names)
    )
    shown = [int(k) for k in np.argsort(-counts, kind="stable")[:SHOWN_NAMES] if counts[k]]
    legend = "".join(
        f'<span><i style="background:rgb{tuple(colors[k].tolist())}"></i>'
        f"{escape(names[k])}</span>"
        for k in shown
    )
    return (
        f'<figure><figcaption>{caption}</figcaption><div class="strip">{strip}</div>'
        f'<div class="legend">{legend}</div></figure>'
    )


def _shrunk(photo: np.ndarray, *labels: np.ndarray) -> list[np.ndarray]:
    """An image (H, W, 3) and label maps (H, W) at the size of the page, labels as int64."""
    height, width = labels[0].shape
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    maps = [cv2.resize(x.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST) for x in labels]
    return [cv2.resize(photo, size, interpolation=cv2.INTER_AREA), *(x.astype(int) for x in maps)]


def _data_uri(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _notes(texts: Sequence[str]) -> str:
    lines = "".join(f"<p>{escape(text)}</p>" for text in texts)
    return f'<div class="note">{lines}</div>' if lines else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], wide: int) -> str:
    """Cells are HTML; column `wide` takes what room there is."""
    lines = "".join(
        "<tr>"
        + "".join(
            f'<td class="wide">{cell}</td>' if column == wide else f"<td>{cell}</td>"
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    names = "".join(f"<th>{name}</th>" for name in head)
    return f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"


def _bullet(percent: float | None, mark: float | None = None, kind: str = "fill") -> str:
    """A bar of so many percent, with a tick at `mark`."""
    tick = "" if mark is None else f'<rect class="tick" x="{mark:.2f}%" width="2" height="14"/>'
    return (
        '<svg class="bullet"><rect class="track" y="3" width="100%" height="8" rx="4"/>'
        f'<rect class="{kind}" y="3" width="{percent or 0:.2f}%" height="8" rx="4"/>{tick}</svg>'
    )


def _figure(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.2f}"


def _difference(value: float | None) -> str:
    if value is None:
        return ""
    return f'<span class="{"up" if value >= 0 else "down"}">{value:+.2f}</span>'

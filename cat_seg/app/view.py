"""What the page shows of a segmentation: a picture that answers to the pointer, a heat map.

H, W pixels, T classes.
"""

from __future__ import annotations

import base64
import html
import io
import json

import cv2
import numpy as np
from PIL import Image

from cat_seg.segmentation import Segmentation

LONGEST = 1400  # pixels of the longer side of what is shown; files are written at full size


def figure(result: Segmentation, opacity: float) -> str:
    """Return the overlay as HTML; under the pointer, page.js reads name and probability.

    They come as a second picture: red and green are the label + 1, in base 256, blue is the
    probability in percent. The names are in a data attribute.
    """
    small = shrink(result)
    labels, percent = small.labels + 1, np.rint(100 * small.scores).clip(0, 100)
    values = np.stack([labels // 256, labels % 256, percent], axis=-1).astype(np.uint8)
    names = html.escape(json.dumps(result.classes, ensure_ascii=False), quote=True)
    alt = html.escape(describe(result), quote=True)
    overlay = _data_url(small.plot(opacity=opacity, legend=False), "JPEG")
    return (
        f'<figure class="catseg" tabindex="0" role="img" aria-label="{alt}" data-names="{names}" '
        f'data-values="{_data_url(Image.fromarray(values), "PNG")}">'
        f'<img src="{overlay}" alt="{alt}" draggable="false">'
        '<span class="catseg-tip" role="status" hidden></span></figure>'
    )


def describe(result: Segmentation) -> str:
    """Say in a sentence what is where: the text instead of the picture."""
    shares = [f"{name} {100 * share:.0f} %" for name, share in result.areas().items()]
    if result.unlabelled > 0.005:
        shares.append(f"none of these {100 * result.unlabelled:.0f} %")
    return f"Segmentation: {', '.join(shares)}."


def areas(result: Segmentation) -> list[list[str | float]]:
    """Return rows of name and share in percent, largest first, unlabelled pixels last."""
    rows: list[list[str | float]] = [
        [name, round(100 * share, 1)] for name, share in result.areas().items()
    ]
    if result.unlabelled > 0:
        rows.append(["none of these", round(100 * result.unlabelled, 1)])
    return rows


def heat_map(result: Segmentation, name: str) -> tuple[Image.Image, float]:
    """Colour how probable a class is everywhere, from black (not at all) to yellow (its largest).

    Returns:
        the picture, and that largest probability.
    """
    values = result.probabilities(name)
    peak = float(values.max())
    height, width = _view_size(values.shape)
    values = cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA)
    scaled = np.rint(255 * (values / max(peak, 1e-8)).clip(0, 1)).astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    if result.image is not None:
        gray = cv2.cvtColor(result.image, cv2.COLOR_RGB2GRAY)
        gray = cv2.resize(gray, (width, height), interpolation=cv2.INTER_AREA)
        colors = cv2.addWeighted(colors, 0.75, np.repeat(gray[..., None], 3, axis=2), 0.25, 0)
    return Image.fromarray(np.asarray(colors, np.uint8)), peak


def shrink(result: Segmentation) -> Segmentation:
    """Return a result no larger than what is shown."""
    height, width = _view_size(result.labels.shape)
    if (height, width) == result.labels.shape:
        return result
    rows = (np.arange(height) + 0.5) * result.labels.shape[0] // height
    columns = (np.arange(width) + 0.5) * result.labels.shape[1] // width
    at = np.ix_(rows.astype(int), columns.astype(int))
    image = result.image
    if image is not None:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    return Segmentation(
        labels=result.labels[at],
        scores=result.scores[at],
        classes=result.classes,
        image=image,
        background=result.background,
    )


def _view_size(shape: tuple[int, ...]) -> tuple[int, int]:
    scale = min(1.0, LONGEST / max(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _data_url(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"

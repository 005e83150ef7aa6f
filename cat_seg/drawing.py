"""A segmentation for people to look at: colours over the picture, names in it, a legend beside it.

Shape letters: H, W image; T classes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from cat_seg.fonts import can_draw, draw_text, text_width
from cat_seg.label_maps import strips
from cat_seg.palette import is_light, name_colors
from cat_seg.utils.files import write_picture

OPACITY = 0.5  # of the class colours over the image
SMALLEST_VIEW = 800  # pixels; smaller images are enlarged, so that names fit into their regions
SMALLEST_FONT = 13  # pixels
LONGEST_NAME = 32  # characters of a name
NONE_OF_THESE = "none of these"  # what the legend calls unlabelled pixels
TEXT, FAINT, GROUND = (40, 40, 40), (130, 130, 130), (255, 255, 255)
_SMALLEST_NAME = 0.6  # of the font; what has no room for that is named by the legend alone
_SMALLEST_REGION = 0.004  # of the picture; a smaller one is named by the legend alone
_SMOOTHED_CLASSES = 64  # the largest; the others keep the outlines of their pixels
_SEAM = 0.025  # of the longer side; unlabelled pixels between classes that are narrower
_PLACING = 400  # pixels of the longer side of the map on which names are placed
_FILLING = 1000  # of the map on which seams are found, whose cost grows with the cube of the side


def draw_segmentation(
    image: np.ndarray | None,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    opacity: float = OPACITY,
    names: bool = True,
    legend: bool = True,
    outline: bool = True,
    original: bool = False,
    steady: bool = False,
) -> Image.Image:
    """Draw the classes over the image.

    Args:
        image: (H, W, 3) uint8, RGB; without one, the colours stand on white.
        labels: (H, W) integers; a value outside 0..T-1 leaves its pixels as they are.
        classes: the T class names.
        opacity: of the colours, 0 to 1.
        names: write the names into the picture, where they fit.
        legend: list names and shares on the right, largest area first.
        outline: draw a line where classes meet.
        original: put the image as it is on the left.
        steady: colour a class alike whichever others occur, as frames of a video need.
    """
    if image is None:
        image = np.full((*labels.shape, 3), 255, np.uint8)
    indices, shares, labels = _present(labels, len(classes))
    texts = [_text(classes[i], i) for i in indices]
    shown = [classes[i] for i in indices]
    colors = name_colors(classes)[indices] if steady else name_colors(shown)
    scale = max(1.0, SMALLEST_VIEW / max(image.shape[:2]))
    if scale > 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    fine, line = _enlarge(labels, _without_seams(labels), len(indices), image.shape[:2], scale)
    del labels  # of a large picture
    height, width = fine.shape
    font_size = int(np.clip((height * width) ** 0.5 / 34, SMALLEST_FONT, 80))
    beside = Image.new("RGB", (0, 0))
    if legend:
        step = max(1, max(fine.shape) // 500)
        sample = fine[::step, ::step]
        blended = blend(image[::step, ::step], sample, colors, opacity=opacity)
        seen = _mean_colors(blended, sample, colors, opacity)
        beside = _draw_legend(texts, shares, colors, seen, height, font_size)
    gap = font_size // 2
    left = width + gap if original else 0
    right = left + width + gap
    size = (right + beside.width if legend else left + width, max(height, beside.height))
    picture = Image.new("RGB", size, GROUND)
    for rows, strip in _blended(image, fine, colors, opacity, line if outline else None):
        if original:
            picture.paste(Image.fromarray(image[rows]), (0, rows.start))
        picture.paste(Image.fromarray(strip), (left, rows.start))
    if names:
        _write_names(picture, left, fine, texts, colors, font_size)
    if legend:
        picture.paste(beside, (right, 0))
    return picture


def blend(
    image: np.ndarray,
    labels: np.ndarray,
    colors: np.ndarray,
    *,
    opacity: float = OPACITY,
    line: np.ndarray | None = None,
) -> np.ndarray:
    """Lay the colour of each class over the image.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) integers; a value outside 0..T-1 leaves its pixels as they are.
        colors: (T, 3) uint8, RGB.
        opacity: of the colours, 0 to 1.
        line: (H, W) uint8, opacity of a white line on top, 255 the most.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    result = np.empty_like(image)
    for rows, strip in _blended(image, labels, colors, opacity, line):
        result[rows] = strip
    return result


def _blended(
    image: np.ndarray,
    labels: np.ndarray,
    colors: np.ndarray,
    opacity: float,
    line: np.ndarray | None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """`blend` in strips: their rows, and the strips."""
    table = np.concatenate([colors, np.zeros((1, 3), np.uint8)])
    for rows in strips(labels):
        known = (labels[rows] >= 0) & (labels[rows] < len(colors))
        layer = table[np.where(known, labels[rows], len(colors))]
        blended = cv2.addWeighted(image[rows], 1 - opacity, layer, opacity, 0)
        blended[~known] = image[rows][~known]
        if line is not None:
            weight = cv2.merge([line[rows]] * 3)
            kept = cv2.multiply(blended, cv2.bitwise_not(weight), scale=1 / 255)
            blended = np.asarray(cv2.add(kept, weight))
        yield rows, blended


def save_picture(path: str | Path, picture: Image.Image) -> Path:
    """Write a picture in the format of its suffix, complete or not at all."""
    path = Path(path)
    write_picture(path, picture, quality=92)
    return path


def _present(labels: np.ndarray, count: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Find the classes that occur, largest first.

    Returns:
        Their indices, the shares of the unlabelled pixels and of each, and (H, W) signed positions
        among them, or -1.
    """

    def inside(rows: slice) -> np.ndarray:
        part = labels[rows]
        return np.where((part >= 0) & (part < count), part, count)

    counts = np.zeros(count + 1, np.int64)
    for rows in strips(labels):
        counts += np.bincount(inside(rows).ravel(), minlength=count + 1)
    order = np.argsort(-counts[:count], kind="stable")
    indices = [int(i) for i in order[: np.count_nonzero(counts[:count])]]
    dtype = next(t for t in (np.int8, np.int16, np.int32) if len(indices) <= np.iinfo(t).max)
    table = np.full(count + 1, -1, dtype)
    table[indices] = np.arange(len(indices))
    found = np.empty(labels.shape, table.dtype)
    for rows in strips(labels):
        found[rows] = table[inside(rows)]
    return indices, counts[[count, *indices]] / labels.size, found


def _without_seams(labels: np.ndarray) -> np.ndarray:
    """Give narrow unlabelled seams to the nearest class, so that one line runs along each.

    Args:
        labels: (h, w) signed, -1 where unlabelled.

    Returns:
        the same, or itself if there is no such seam.
    """
    step = max(1, max(labels.shape) // _FILLING)
    small = labels[::step, ::step]
    unlabelled = (small < 0).astype(np.uint8)
    side = 2 * max(1, round(_SEAM * max(small.shape) / 2)) + 1
    brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    wide = cv2.morphologyEx(unlabelled, cv2.MORPH_OPEN, brush)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(wide, connectivity=4)
    tiny = stats[:, cv2.CC_STAT_AREA] < _SMALLEST_REGION * small.size
    seams = (unlabelled > 0) & ((wide == 0) | tiny[parts])
    if not seams.any() or unlabelled.all():
        return labels
    _, nearest = cv2.distanceTransformWithLabels(
        unlabelled, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros(int(nearest.max()) + 1, labels.dtype)
    table[nearest[unlabelled == 0]] = small[unlabelled == 0]
    filling = np.where(seams, table[nearest], small)
    filled: np.ndarray = labels.copy()
    for top, row in zip(range(0, len(labels), step), filling, strict=True):
        part = filled[top : top + step]
        np.copyto(part, np.repeat(row, step)[: labels.shape[1]], where=part < 0)
    return filled


def _enlarge(
    labels: np.ndarray, filled: np.ndarray, count: int, size: tuple[int, int], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge a label map with smooth edges, a large one in strips.

    Args:
        labels: (h, w) signed, -1..count-1, the largest class first.
        filled: the same without seams, which get no line of their own.
        count: of classes.
        size: H, W of the picture.
        scale: H / h.

    Returns:
        The labels, (H, W) as they come, and an anti-aliased line between them, (H, W) uint8.
    """
    sigma = max(min(0.45 * scale, 6.0), max(size) / 1400, 1.0)
    margin = int(np.ceil(3 * sigma / scale)) + 1  # of the small map, so that no blur is cut off
    if scale > 1:
        return _smooth(labels, filled, count, size, sigma, margin)
    fine, line = np.empty(size, labels.dtype), np.empty(size, np.uint8)
    for rows in strips(labels):
        seen = slice(max(0, rows.start - margin), min(rows.stop + margin, size[0]))
        shape = (seen.stop - seen.start, size[1])
        parts = _smooth(labels[seen], filled[seen], count, shape, sigma, margin)
        for whole, part in zip((fine, line), parts, strict=True):
            whole[rows] = part[rows.start - seen.start : rows.stop - seen.start]
    return fine, line


def _smooth(
    labels: np.ndarray,
    filled: np.ndarray,
    count: int,
    size: tuple[int, int],
    sigma: float,
    margin: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`_enlarge` by the blurred mask that is highest, of so many pixels' sigma."""
    height, width = size
    result = cv2.resize(filled, (width, height), interpolation=cv2.INTER_NEAREST)
    highest = 255 * (result >= _SMOOTHED_CLASSES).astype(np.uint8)
    for index in range(-1, min(count, _SMOOTHED_CLASSES)):
        mask = (filled == index).astype(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        if not w:
            continue
        x0, y0 = max(0, x - margin), max(0, y - margin)
        x1, y1 = min(filled.shape[1], x + w + margin), min(filled.shape[0], y + h + margin)
        left, top = round(x0 * width / filled.shape[1]), round(y0 * height / filled.shape[0])
        right, bottom = round(x1 * width / filled.shape[1]), round(y1 * height / filled.shape[0])
        part = 255 * mask[y0:y1, x0:x1]
        if filled.shape != size:
            part = cv2.resize(part, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
        part = cv2.GaussianBlur(part, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        window = (slice(top, bottom), slice(left, right))
        above = part > highest[window]
        highest[window][above] = part[above]
        result[window][above] = index
    seams = 255 * (filled != labels).astype(np.uint8)
    if seams.any():  # which have still no colour
        result[cv2.resize(seams, (width, height), interpolation=cv2.INTER_LINEAR) > 127] = -1
    # Far from an edge the highest mask is 255, at one 128: a line of about 2 sigma.
    doubt = 2 * (1 - np.arange(256) / 255)
    opacity = 230 * np.clip((doubt - 0.3) / 0.3, 0, 1)
    return result, np.asarray(cv2.LUT(highest, opacity.astype(np.uint8)))


def _write_names(
    picture: Image.Image,
    offset: int,
    labels: np.ndarray,
    texts: Sequence[str],
    colors: np.ndarray,
    font_size: int,
) -> None:
    """Write each region's name where the widest free place for it is, large regions first.

    The labels (H, W) are of the part of the picture that begins at x = offset, y = 0.
    """
    shrink = max(1, max(labels.shape) // _PLACING)
    top, left = (min(shrink, side) // 2 for side in labels.shape)  # a strip keeps a pixel's width
    small = labels[top::shrink, left::shrink]
    regions = []
    for index in range(min(len(texts), _SMOOTHED_CLASSES)):
        mask = (small == index).astype(np.uint8)
        if np.count_nonzero(mask) < _SMALLEST_REGION * small.size:
            break  # the others are smaller still
        _, parts, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        for part in range(1, len(stats)):
            x, y, w, h, area = (int(value) for value in stats[part])
            if area >= _SMALLEST_REGION * small.size:
                regions.append((area, index, x, y, parts[y : y + h, x : x + w] == part))
    taken: list[tuple[float, float, float, float]] = []
    for _, index, x, y, region in sorted(regions, key=lambda region: -region[0]):
        aspect = text_width(texts[index], font_size) / font_size + 0.9  # of the box with margins
        center_x, center_y, height = _widest_place(region, aspect / 1.5)
        size = min(font_size, int(height * shrink / 1.5))
        if size < max(SMALLEST_FONT, _SMALLEST_NAME * font_size):
            continue
        text = draw_text(texts[index], size, _text_color(colors[index]))
        half_width, half_height = text.width / 2 + 0.4 * size, text.height / 2 + 0.05 * size
        middle_x, middle_y = (x + center_x + 0.5) * shrink, (y + center_y + 0.5) * shrink
        middle_x = (
            float(np.clip(middle_x, half_width + 2, labels.shape[1] - half_width - 2)) + offset
        )
        middle_y = float(np.clip(middle_y, half_height + 2, labels.shape[0] - half_height - 2))
        box = (
            *(middle_x - half_width, middle_y - half_height),
            *(middle_x + half_width, middle_y + half_height),
        )
        if any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in taken
        ):
            continue
        taken.append(box)
        _draw_pill(picture, box, tuple(int(c) for c in colors[index]))
        picture.paste(
            text, (round(middle_x - text.width / 2), round(middle_y - text.height / 2)), text
        )


def _widest_place(region: np.ndarray, aspect: float) -> tuple[float, float, float]:
    """Find the centre of the largest ellipse of that width / height inside a region.

    Returns:
        x, y of the centre and the height of a box, a little more than inscribed in the ellipse.
    """
    width = max(1, round(region.shape[1] / aspect))
    squeezed = cv2.resize(
        region.astype(np.uint8), (width, region.shape[0]), interpolation=cv2.INTER_AREA
    )
    distance = cv2.distanceTransform(np.pad(squeezed, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    # Of places with about as much room, the one nearest to the centre of the region.
    rows, columns = np.mgrid[: distance.shape[0], : distance.shape[1]]
    inside = squeezed > 0
    if not inside.any():  # thinner than a pixel of the squeezed region
        return 0.0, 0.0, 0.0
    away = np.hypot(rows - rows[inside].mean(), columns - columns[inside].mean())
    score = distance - 0.15 * distance.max() * away / max(1.0, float(away.max()))
    y, x = divmod(int(score.argmax()), distance.shape[1])
    return (x + 0.5) * region.shape[1] / width - 0.5, float(y), 1.7 * float(distance[y, x])


def _draw_pill(
    picture: Image.Image, box: tuple[float, float, float, float], color: tuple[int, ...]
) -> None:
    """Draw a rounded box of nearly solid colour, anti-aliased."""
    left, top = int(box[0]), int(box[1])
    width, height = int(box[2]) - left + 1, int(box[3]) - top + 1
    mask = Image.new("L", (4 * width, 4 * height))
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, 4 * width - 1, 4 * height - 1), radius=1.4 * height, fill=235
    )
    mask = mask.resize((width, height), Image.Resampling.BOX)
    picture.paste(color, (left, top), mask)


def _mean_colors(
    overlay: np.ndarray, labels: np.ndarray, colors: np.ndarray, opacity: float
) -> np.ndarray:
    """Return the mean colour of each class as it is seen, and last that of the unlabelled pixels.

    Returns:
        (T + 1, 3) uint8, RGB.
    """
    index = np.where(labels < 0, len(colors), labels).ravel()
    count = np.bincount(index, minlength=len(colors) + 1)
    sums = [np.bincount(index, overlay[..., c].ravel(), len(colors) + 1) for c in range(3)]
    means = np.stack(sums, 1) / np.maximum(count, 1)[:, None]
    unseen = opacity * colors + (1 - opacity) * 128.0  # too small for the sample
    means[:-1][count[:-1] == 0] = unseen[count[:-1] == 0]
    return means.astype(np.uint8)


def _draw_legend(
    texts: Sequence[str],
    shares: np.ndarray,
    colors: np.ndarray,
    seen: np.ndarray,
    height: int,
    font_size: int,
) -> Image.Image:
    """Draw swatch, name and share of each class, in as many columns as the height asks for.

    Args:
        texts: the T names, largest area first.
        shares: (T + 1,), first that of the unlabelled pixels.
        colors: (T, 3) uint8, the ring of a swatch.
        seen: (T + 1, 3) uint8, its filling, last that of the unlabelled pixels.
        height: of the picture beside it, pixels.
        font_size: pixels.
    """
    entries = [
        (text, _percent(float(share)), tuple(int(c) for c in ring), tuple(int(c) for c in fill))
        for text, share, ring, fill in zip(texts, shares[1:], colors, seen[:-1], strict=True)
    ]
    if shares[0]:
        fill = tuple(int(c) for c in seen[-1])
        entries.append((NONE_OF_THESE, _percent(float(shares[0])), FAINT, fill))
    while True:
        line, margin = int(font_size * 1.75), font_size
        rows = max(1, (height - 2 * margin) // line, min(8, len(entries)))
        if font_size <= SMALLEST_FONT or len(entries) <= 2 * rows:
            break
        font_size = max(SMALLEST_FONT, int(font_size * 0.85))  # rather than many columns
    height = max(height, 2 * margin + line * min(rows, len(entries)))
    columns = [entries[i : i + rows] for i in range(0, len(entries), rows)]
    share_width = max(text_width(entry[1], font_size) for entry in entries)
    widths = [
        int(3.2 * font_size)
        + share_width
        + max(text_width(entry[0], font_size) for entry in column)
        for column in columns
    ]
    legend = Image.new("RGB", (sum(widths) + margin, height), GROUND)
    draw = ImageDraw.Draw(legend)
    left = margin
    for column, width in zip(columns, widths, strict=True):
        right = left + width - margin
        for row, (text, percent, ring, fill) in enumerate(column):
            middle = margin + line * row + line // 2
            half = font_size // 2
            draw.rounded_rectangle(
                (left, middle - half, left + 2 * half, middle + half),
                radius=max(2, half // 2),
                fill=fill,
                outline=ring,
                width=max(2, font_size // 8),
            )
            written = draw_text(text, font_size, FAINT if text == NONE_OF_THESE else TEXT)
            legend.paste(
                written, (left + int(1.6 * font_size), middle - written.height // 2), written
            )
            written = draw_text(percent, font_size, FAINT)
            legend.paste(written, (right - written.width, middle - written.height // 2), written)
        left += width
    return legend


def _text(name: str, index: int) -> str:
    """Return what is written for a class: its name, or its number where no font has that."""
    name = " ".join(name.split())
    name = "".join(c for c in name if unicodedata.category(c) != "Cc")
    if not name or not can_draw(name):
        return f"#{index}"
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + "…"


def _text_color(color: np.ndarray) -> tuple[int, int, int]:
    return (20, 20, 20) if is_light(color) else (255, 255, 255)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share >= 0.0005 else "<0.1%"

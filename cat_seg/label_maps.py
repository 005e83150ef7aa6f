"""Label maps as files: one channel, one class index a pixel, 8, 16 or 32 bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from cat_seg.errors import CATSegError
from cat_seg.images import open_image
from cat_seg.utils.files import write_picture

_ONE_CHANNEL = {"1", "L", "P", "I", "I;16", "I;16B", "I;16L"}
_STRIP = 1 << 22  # pixels
_TEXT_KEY = "cat_seg"  # of the text inside a PNG
_TIFF_DESCRIPTION = 270  # the tag ImageDescription


def read_label_map(path: str | Path) -> np.ndarray:
    """Read a label map of any depth: (H, W), integer.

    Palette images give their indices. An image of three equal channels counts as one.

    Raises:
        CATSegError: if the file cannot be read, is a JPEG, or its channels differ.
    """
    mode, labels = _read(path)
    if mode in ("RGB", "RGBA") and (labels[..., :3] == labels[..., :1]).all():
        return labels[..., 0]
    if mode not in _ONE_CHANNEL:
        raise CATSegError(
            f"{path}: a label map has one channel of class indices; this is an image of mode "
            f"{mode}. If its colours are classes, tell them by PALETTE."
        )
    return labels.astype(np.uint8) if mode == "1" else labels


def read_colors(path: str | Path) -> np.ndarray:
    """Read an image's colours: (H, W) int32, 0xRRGGBB.

    Raises:
        CATSegError: if the file cannot be read, or is a JPEG.
    """
    _, pixels = _read(path, "RGB")
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    result: np.ndarray = red << 16 | green << 8 | blue
    return result


def _read(path: str | Path, convert: str = "") -> tuple[str, np.ndarray]:
    """Read mode and pixels of an image, converted if that is asked for."""
    with open_image(path) as image:
        lossy, mode = image.format in ("JPEG", "MPO"), image.mode
        pixels = np.asarray(image.convert(convert) if convert else image)
    if lossy:
        raise CATSegError(
            f"{path}: a label map as JPEG, whose compression changes labels at every edge; make it "
            "anew as PNG from what it was drawn with."
        )
    return mode, pixels


def write_label_map(path: str | Path, labels: np.ndarray, text: str = "") -> None:
    """Write a label map (H, W) whole or not at all.

    Args:
        path: ends in .png, or .tif, which alone holds int32.
        labels: uint8, uint16 or int32.
        text: put inside, for `text_inside`.
    """
    assert labels.ndim == 2 and labels.dtype in (np.uint8, np.uint16, np.int32), labels.dtype
    options: dict[str, Any] = {}
    if Path(path).suffix == ".tif":
        options["compression"] = "tiff_adobe_deflate"
        if text:  # a TIFF's text is ASCII
            options["description"] = text.encode("ascii", "backslashreplace").decode()
    else:
        assert labels.dtype != np.int32, "a PNG has 16 bits at most"
        if text:
            inside = PngImagePlugin.PngInfo()
            # What is compressed and longer, Pillow refuses to read.
            compress = 1000 < len(text.encode()) < PngImagePlugin.MAX_TEXT_CHUNK
            inside.add_itxt(_TEXT_KEY, text, zip=compress)
            options["pnginfo"] = inside
    write_picture(path, Image.fromarray(labels), **options)


def strips(labels: np.ndarray) -> Iterator[slice]:
    """Divide the rows of a label map, so that what is computed on the way needs little memory."""
    step = max(1, _STRIP // labels.shape[1])
    return (slice(top, top + step) for top in range(0, len(labels), step))


def text_inside(image: Image.Image) -> str | None:
    """Return the text that `write_label_map` put into an image, once that is decoded."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        text = image.tag_v2.get(_TIFF_DESCRIPTION)
    else:
        text = getattr(image, "text", {}).get(_TEXT_KEY)
    return None if text is None else str(text)


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the height and width that an image has once turned upright by its EXIF tag.

    Raises:
        CATSegError: if the file is missing or no image.
    """
    with open_image(path) as image:
        width, height = image.size
        orientation = image.getexif().get(0x0112, 1)
    return (width, height) if orientation >= 5 else (height, width)

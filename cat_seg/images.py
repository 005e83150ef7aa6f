"""Images as people have them, read as 8-bit RGB."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

# What is taken from a folder; a file that is named itself may be called anything.
SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file the way it is meant to be seen.

    The EXIF orientation is applied. Grey, palette and CMYK images become RGB; transparent parts
    show a white ground; of an animation the first frame is taken; colour profiles are not applied.
    Integers of more than 8 bits are scaled from their full range of 16 bits, or from their maximum
    where that is larger; floats from the first of 1, 255, 65535 that none of them exceeds.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: naming the file, if it is missing, damaged, too large or not an image.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder without images; expected an image file.")
    if not path.is_file() and glob.has_magic(str(path)):
        raise ValueError(f"{path} matches no file; expected an image file.")
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {problem}; expected an image file.")
    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(_upright(image, path))
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image in a format that Pillow reads.") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large, scale it down first: {error}") from None
    # Pillow's decoders report damage by whatever exception they run into.
    except Exception as error:
        raise ValueError(f"{path} cannot be read, it may be damaged: {error}") from error


def find_images(inputs: Iterable[str | Path]) -> list[Path]:
    """Expand files, globs ("**" included) and folders to image files, each once.

    A folder stands for the image files right inside it, in the order of their names. What matches
    nothing is returned as it is, so that reading it says what is wrong.
    """
    found: dict[Path, None] = {}
    for item in inputs:
        path = Path(item).expanduser()
        matches = (
            [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        )
        for match in matches or [path]:
            inside = (
                sorted(p for p in match.iterdir() if _is_image_name(p)) if match.is_dir() else []
            )
            found.update(dict.fromkeys(inside or [match]))
    return list(found)


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _upright(image: Image.Image, path: Path) -> Image.Image:
    """Apply the EXIF orientation; a damaged EXIF block does not make the image unreadable."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        logger.warning("%s: its EXIF data is damaged and ignored (%s)", path, error)
        return image


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        values = _to_8_bit(np.asarray(image))
        return np.repeat(values[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return np.array(image.convert("RGB"))  # a copy, so that it can be written to


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Scale (H, W) integers of 16 or 32 bits, or floats, to uint8."""
    scaled = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = float(scaled.max(initial=0.0))
    ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    full = next((r for r in ranges if largest <= r), largest)
    return np.rint(scaled.clip(0.0) * (255.0 / full)).astype(np.uint8)

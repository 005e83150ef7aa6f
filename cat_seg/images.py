"""The one reader of pictures: whatever people have becomes upright 8-bit RGB."""

from __future__ import annotations

import contextlib
import glob
import http.client
import io
import logging
import os
import re
import stat
import struct
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps

from cat_seg.errors import CATSegError, MissingPackageError
from cat_seg.resources import user_path
from cat_seg.utils.files import url_opener

logger = logging.getLogger(__name__)

# What is taken from a folder; a file that is named itself may be called anything.
SUFFIXES = frozenset(
    ".avif .bmp .gif .heic .heif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff "
    ".webp".split()
)
MAX_PIXELS = 200_000_000  # a phone's largest photograph; CAT_SEG_MAX_PIXELS sets another limit

# Pillow's names of formats, those that are told by their first bytes first. EPS and the like are
# programs for other programs, and not among them.
_FORMATS = "JPEG PNG GIF BMP TIFF WEBP JPEG2000 AVIF PPM DIB TGA".split()
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_STRIP = 1 << 24  # pixels that are converted at a time; bounds memory
_lock = threading.Lock()
_readers = 0  # threads that are in `_whole_files`
_flag = False  # Pillow's, as it was before them
_URL_BYTES = 1 << 28  # of a download
_URL_SECONDS = 60.0
_EXPECTED = (
    "expected a path, bytes, a PIL image, an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a "
    "tensor (H, W) or (3, H, W), of uint8, uint16 or floats in [0, 1]"
)


def read(picture: Any, *, allow_url: bool = False, max_pixels: int | None = None) -> np.ndarray:
    """Read a picture of any usual kind the way it is meant to be seen.

    Files, bytes and PIL images: the EXIF orientation is applied. Grey, palette and CMYK images
    become RGB; of an animation the first frame is taken; colour profiles are not applied. Integers
    of more than 8 bits are scaled from their full range of 16 bits, or from their maximum where
    that is larger; floats from the first of 1, 255, 65535 that none of them exceeds.

    Arrays and tensors: uint16 is scaled from its full range; floats lie in [0, 1], where 1 is white
    (what rounding left a thousandth outside is clipped). Everywhere, transparent parts show a white
    ground.

    Args:
        picture: a path; an http(s) address if `allow_url`; the bytes of an image file; a PIL image;
            a NumPy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); a torch tensor (H, W) or
            (1, 3 or 4, H, W); RGB.
        allow_url: whether a string may be an address that is fetched.
        max_pixels: what has more is refused before it is decoded; 0 for no limit. None takes the
            environment variable CAT_SEG_MAX_PIXELS, else 200 million. Arrays are there already, and
            have none.

    Returns:
        (H, W, 3) uint8, RGB; never a view of what came.

    Raises:
        CATSegError: if it is missing, damaged, too large or no picture; the message names it.
    """
    if isinstance(picture, str) and picture.lower().startswith(("http://", "https://")):
        if not allow_url:
            raise CATSegError(
                f"{picture} is an address; expected a file. To fetch it, pass allow_url=True."
            )
        return _decode(io.BytesIO(_download(picture)), picture, max_pixels)
    if isinstance(picture, str | os.PathLike):
        return read_image(picture, max_pixels=max_pixels)
    if isinstance(picture, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(picture), "The picture (bytes)", max_pixels)
    if isinstance(picture, Image.Image):
        check_size(picture.size, "The picture (a PIL image)", max_pixels)
        return _convert(picture)
    if isinstance(picture, torch.Tensor):
        return _from_array(_channels_last(picture), f"a tensor {tuple(picture.shape)}")
    if isinstance(picture, np.ndarray):
        return _from_array(picture, f"an array {picture.shape}")
    raise CATSegError(f"The picture is {_describe(picture)}; {_EXPECTED}.")


def read_image(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> np.ndarray:
    """Read an image file, see `read`.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        CATSegError: naming the file, if it is missing, damaged, too large or not an image.
    """
    with open_image(path, max_pixels=max_pixels) as image:
        return _convert(image)


@contextlib.contextmanager
def open_image(
    path: str | os.PathLike[str] | bytes, *, max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """Open an image file, or the bytes of one, of which nothing is decoded yet.

    Raises:
        CATSegError: naming the file, if it is missing, damaged, too large or not an image; also for
            what is found while it is decoded in the block.
    """
    if isinstance(path, bytes):
        with _opened(io.BytesIO(path), "The picture (bytes)", max_pixels) as image:
            yield image
        return
    name = _printable(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise CATSegError(f"{name} is a folder without images; expected an image file.")
        if not stat.S_ISREG(mode):  # reading from a pipe or a device may never end
            raise CATSegError(f"{name} is not a regular file; expected an image file.")
        file = open(path, "rb")
    except FileNotFoundError:
        problem = "matches no file" if glob.has_magic(os.fspath(path)) else "does not exist"
        raise CATSegError(f"{name} {problem}; expected an image file.") from None
    except OSError as error:
        reason = error.strerror or error
        raise CATSegError(f"{name} cannot be opened ({reason}); expected an image file.") from error
    except ValueError as error:
        if isinstance(error, CATSegError):
            raise
        raise CATSegError(f"{name} cannot be the name of a file ({error}).") from error
    with file, _opened(file, name, max_pixels) as image:
        yield image


def find_images(inputs: Iterable[str | Path]) -> list[Path]:
    """Expand files, globs ("**" included) and folders to image files, each once.

    A folder stands for the image files in it and in its subfolders, in the order of their paths;
    hidden files and folders are left out, and links to folders are not followed. What matches
    nothing is returned as it is, so that reading it says what is wrong.
    """
    return [path for path, _ in _expand(inputs)]


def find_inputs(inputs: Iterable[str | Path]) -> list[tuple[Path, Path]]:
    """Expand inputs as `find_images` does, and name the output of each.

    An output is named like its file without the suffix: relative to the folder that was given, to
    the part of a glob before its first wildcard, or to the file's own folder. Of several inputs
    with different such folders, names are relative to the deepest folder that holds them all. The
    suffix is kept if it is none of an image, and where the file's folder has another image of the
    same stem: a.jpg and a.png give "a.jpg" and "a.png", whether both are among the inputs or not.

    Returns:
        pairs of a file and the relative path of its outputs, to which endings may be added. No two
        are the same.
    """
    found = _expand(inputs)
    roots = {os.path.abspath(root) for path, root in found if os.path.exists(path)}
    common = os.path.commonpath(roots) if roots else ""
    taken: dict[Path, dict[str, set[str]]] = {}
    named = []
    for path, root in found:
        base = common if os.path.exists(path) else os.path.abspath(root)
        folder = Path(os.path.relpath(os.path.abspath(path.parent), base))
        if path.parent not in taken:
            taken[path.parent] = _owners(path.parent)
        alone = taken[path.parent].get(path.stem.lower(), set()) <= {path.name}
        short = alone and _is_image_name(path)
        named.append((path, folder / (path.stem if short else path.name)))
    return named


def _expand(inputs: Iterable[str | Path]) -> list[tuple[Path, Path]]:
    """List image files, each once, with the folder that was given for them."""
    found: dict[str, tuple[Path, Path]] = {}
    for item in inputs:
        path = user_path(item)
        for match, root in _matches(path):
            files = list(_images_in(match)) if os.path.isdir(match) else []
            for file in files or [match]:
                found.setdefault(os.path.abspath(file), (file, root))
    return list(found.values())


def _matches(path: Path) -> Iterator[tuple[Path, Path]]:
    """Return what a path or glob stands for, and the folder that outputs are named relative to."""
    if os.path.lexists(path) or not glob.has_magic(str(path)):
        yield path, path if os.path.isdir(path) else path.parent
        return
    parts = path.parts
    plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:plain])
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not path.suffix or glob.has_magic(path.suffix):  # as in "photos/*", not in "photos/*.dat"
        matches = [m for m in matches if _is_image_name(m) or os.path.isdir(m)]
    for match in matches:
        if not (os.path.isdir(match) and not any(_images_in(match))):
            yield match, root
    if not matches:
        yield path, root


def _images_in(folder: Path) -> Iterator[Path]:
    """Image files in a folder and its subfolders, in the order of their paths."""
    found = []
    for where, folders, files in os.walk(folder, onerror=lambda e: logger.warning("%s", e)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in files if _is_image_name(path := Path(where, name))]
    return iter(sorted(found))


def _owners(folder: Path) -> dict[str, set[str]]:
    """Return which files may claim an output name: by their names, images also by stem."""
    owners: dict[str, set[str]] = {}
    try:
        names = [entry.name for entry in os.scandir(folder) if not entry.is_dir()]
    except OSError:
        return owners
    for name in names:
        claims = {name.lower(), Path(name).stem.lower()} if _is_image_name(name) else {name.lower()}
        for claim in claims:
            owners.setdefault(claim, set()).add(name)
    return owners


def _is_image_name(name: str | Path) -> bool:
    path = Path(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _decode(file: BinaryIO, name: str, max_pixels: int | None) -> np.ndarray:
    with _opened(file, name, max_pixels) as image:
        return _convert(image)


@contextlib.contextmanager
def _opened(file: BinaryIO, name: str, max_pixels: int | None) -> Iterator[Image.Image]:
    try:
        with _whole_files(), _open(file, name) as image:
            check_size(image.size, name, max_pixels)
            yield image
    except CATSegError:
        raise
    except MemoryError as error:
        raise CATSegError(f"{name} needs more memory than there is; scale it down.") from error
    # Pillow's decoders report damage by whatever exception they run into.
    except Exception as error:
        raise CATSegError(f"{name} cannot be read, it may be damaged: {error}") from error


@contextlib.contextmanager
def _whole_files() -> Iterator[None]:
    """Let Pillow refuse truncated files, which a package may have allowed in the whole process."""
    global _readers, _flag
    with _lock:
        if not _readers:
            _flag = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                ImageFile.LOAD_TRUNCATED_IMAGES = _flag


def _open(file: BinaryIO, name: str) -> Image.Image:
    """Open an image as Image.open does, but for two things.

    Pillow's limit of pixels is a setting of the whole process, so ours is checked instead; and only
    formats of pixels are tried.
    """
    Image.init()
    head = file.read(16)
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise MissingPackageError(
                f"{name} is HEIC, which needs a package: pip install pillow-heif."
            ) from None
        opened: Image.Image = HeifImageFile(file, name)  # type: ignore[no-untyped-call]
        return opened
    for kind in _FORMATS:
        factory, accept = Image.OPEN.get(kind, (None, None))
        file.seek(0)
        try:
            accepted = accept(head) if accept else True
            if factory is not None and accepted is True:  # a string says why not
                return factory(file, name)
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # not of this format
    raise CATSegError(f"{name} is not an image in a format that is read; expected JPEG, PNG, TIFF.")


def check_size(size: tuple[int, int], name: str, max_pixels: int | None = None) -> None:
    """Check the size of a picture before it is decoded; `max_pixels` as for `read`.

    Raises:
        CATSegError: if it has no pixels, or too many.
    """
    width, height = size
    if width * height == 0:
        raise CATSegError(f"{name} has no pixels ({width} x {height}); expected at least one.")
    limit = _limit() if max_pixels is None else max_pixels
    if 0 < limit < width * height:
        raise CATSegError(
            f"{name} is too large: {width} x {height} pixels, at most {limit} are read. Scale it "
            "down, or set max_pixels, or the environment variable CAT_SEG_MAX_PIXELS (0: no limit)."
        )


def _limit() -> int:
    text = os.environ.get("CAT_SEG_MAX_PIXELS") or str(MAX_PIXELS)
    if not re.fullmatch("[0-9]{1,18}", text):
        raise CATSegError(
            f"The environment variable CAT_SEG_MAX_PIXELS is {text[:20]!r}; expected a number of "
            "pixels, or 0 for no limit."
        )
    return int(text)


def _convert(image: Image.Image) -> np.ndarray:
    image.load()
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; a damaged EXIF block does not make the image unreadable."""
    try:
        if image.getexif().get(0x0112, 1) in range(2, 9):
            return ImageOps.exif_transpose(image)
    except Exception as error:
        name = _printable(getattr(image, "filename", "")) or "A picture"
        logger.warning("%s: its EXIF data is damaged and ignored (%s)", name, error)
    return image


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I") or image.mode == "F":
        values = _to_8_bit(np.asarray(image))
        return np.repeat(values[:, :, None], 3, axis=2)
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = image.crop((0, top, image.width, bottom))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        rgb[top:bottom] = np.asarray(strip.convert("RGB"))
    return rgb


def _channels_last(picture: torch.Tensor) -> np.ndarray:
    """Turn a tensor (H, W) or (C, H, W) into an array with channels last."""
    if picture.layout != torch.strided or picture.is_complex() or picture.is_quantized:
        raise CATSegError(f"The picture is {_describe(picture)}; {_EXPECTED}.")
    tensor = picture.detach().cpu()
    tensor = tensor.float() if tensor.is_floating_point() else tensor  # NumPy has no bfloat16
    return tensor.movedim(0, -1).numpy() if tensor.ndim == 3 else tensor.numpy()


def _from_array(values: np.ndarray, what: str) -> np.ndarray:
    """Convert an array (H, W) or (H, W, C)."""
    kind = (values.dtype.kind, values.dtype.itemsize)
    channels = values.shape[2] if values.ndim == 3 else 1
    wrong_kind = values.dtype.kind != "f" and kind not in (("u", 1), ("u", 2))
    if values.ndim not in (2, 3) or channels not in (1, 3, 4) or wrong_kind or not values.size:
        raise CATSegError(f"The picture is {what} of {values.dtype}; {_EXPECTED}.")
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (-1e-3 <= low and high <= 1 + 1e-3):  # also where one is not a number
            raise CATSegError(
                f"The picture is {what} of floats from {low:g} to {high:g}; expected [0, 1]. "
                "Divide by the value of white, or convert to uint8."
            )
        values = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    elif values.dtype.itemsize == 2:
        values = _to_8_bit(values)
    values = values.reshape(*values.shape[:2], channels)
    if channels == 4:
        return _to_rgb(Image.fromarray(np.ascontiguousarray(values)))
    return np.repeat(values, 3, axis=2) if channels == 1 else np.array(values, order="C")


def _download(url: str) -> bytes:
    """Fetch an address, within limits of size and time.

    Raises:
        CATSegError: if that fails.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "cat_seg"})
    content = io.BytesIO()
    end = time.monotonic() + _URL_SECONDS
    try:
        with (
            url_opener(_URL_SECONDS) as opener,
            opener.open(request, timeout=_URL_SECONDS / 2) as answer,
        ):
            while content.tell() <= _URL_BYTES and (block := answer.read1(1 << 16)):
                content.write(block)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if time.monotonic() < end:
            raise CATSegError(f"{url} cannot be fetched ({error}).") from error
    if content.tell() > _URL_BYTES or time.monotonic() > end:
        raise CATSegError(
            f"{url} is larger than {_URL_BYTES >> 20} MiB or takes longer than {_URL_SECONDS:.0f} "
            "s; download it yourself and pass the file."
        )
    return content.getvalue()


def _describe(value: Any) -> str:
    if value is None:
        return "None"
    shape = f" {tuple(value.shape)} of {value.dtype}" if isinstance(value, torch.Tensor) else ""
    return f"of type {type(value).__name__}{shape}"


def _printable(path: str | os.PathLike[str]) -> str:
    """Return a path for a message: bytes that are no text are shown as escapes."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 500 else f"{text[:500]}..."


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Scale (H, W) integers of 16 or 32 bits, or floats, to uint8."""
    if values.dtype == np.uint16:  # a table needs less memory than floats
        table: np.ndarray = np.rint(np.arange(65536) * (255 / 65535)).astype(np.uint8)
        return np.asarray(table[values])
    rows = max(1, _STRIP // max(1, values.shape[1]))
    strips = [values[top : top + rows] for top in range(0, len(values), rows)]
    largest = max(float(_finite(strip).max(initial=0.0)) for strip in strips)
    ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    full = next((r for r in ranges if largest <= r), largest)
    scaled = [np.rint(_finite(strip) * (255.0 / full)).astype(np.uint8) for strip in strips]
    return np.concatenate(scaled)


def _finite(values: np.ndarray) -> np.ndarray:
    """Return values as float64; 0 for what is negative or no number."""
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0).clip(0.0)

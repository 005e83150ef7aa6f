"""Segment a picture with an exported model.

    python segment.py photo.jpg labels.png

Needs numpy, pillow and onnxruntime alone. Beside it lie model.onnx, model.json and words.npz.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).parent


def probabilities(
    session: Any, about: dict[str, Any], picture: np.ndarray, text: np.ndarray
) -> np.ndarray:
    """Return the probability of each word at each pixel, (T, H, W), of (H, W, 3) uint8 RGB."""
    size = height, width = picture.shape[0], picture.shape[1]
    scale = min(about["min_size"] / min(size), about["max_size"] / max(size))
    seen = max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))
    image = Image.fromarray(picture).resize(seen, Image.Resampling.BILINEAR)
    image = np.asarray(image, np.float32).transpose(2, 0, 1)
    tile, square, corners = about["tile"], about["resolution"], about["corners"]
    if not tile:  # the model sees the picture once, as a whole
        (logits,) = session.run(None, {"images": image[None], "text": text})[0]
        return resize(1 / (1 + np.exp(-logits)), size)
    whole = resize(image, (square, square))
    crops = [whole[:, top : top + tile, left : left + tile] for top, left in corners]
    crops.append(resize(image, (tile, tile)))
    maps = [session.run(None, {"images": crop[None], "text": text})[0][0] for crop in crops]
    maps = [1 / (1 + np.exp(-resize(logits, (tile, tile)))) for logits in maps]
    total = np.zeros((len(text), square, square), np.float32)
    count = np.zeros((square, square), np.float32)
    for one, (top, left) in zip(maps, corners, strict=False):
        total[:, top : top + tile, left : left + tile] += one
        count[top : top + tile, left : left + tile] += 1
    return resize((total / count + resize(maps[-1], (square, square))) / 2, size)


def resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (C, h, w) to (C, *size), bilinear between the centres of pixels."""
    for axis, out in ((1, size[0]), (2, size[1])):
        here = maps.shape[axis]
        at = np.clip((np.arange(out, dtype=np.float32) + 0.5) * here / out - 0.5, 0, here - 1)
        low = np.floor(at).astype(int)
        part = (at - low).astype(np.float32)[(None,) * axis + (...,) + (None,) * (2 - axis)]
        high = np.minimum(low + 1, here - 1)
        maps = maps.take(low, axis) * (1 - part) + maps.take(high, axis) * part
    return maps


def best(maps: np.ndarray, threshold: float) -> np.ndarray:
    """Return the index of the best word of each pixel, (H, W), of (T, H, W).

    Where none is good enough it is 255, or 65535 of more than 255 words.
    """
    if len(maps) > 65535:
        raise ValueError(f"{len(maps)} words; a label map as PNG has room for 65535.")
    dtype = np.uint8 if len(maps) <= 255 else np.uint16
    return np.where(maps.max(0) < threshold, np.iinfo(dtype).max, maps.argmax(0)).astype(dtype)


def main(photo: str, target: str) -> None:
    """Write a label map, see `best`."""
    import onnxruntime

    about = json.loads((HERE / "model.json").read_text("utf-8"))
    words = np.load(HERE / "words.npz")
    session = onnxruntime.InferenceSession(str(HERE / about["file"]))
    picture = np.asarray(ImageOps.exif_transpose(Image.open(photo)).convert("RGB"))
    maps = probabilities(session, about, picture, words["features"])
    labels = best(maps, words["threshold"])
    Image.fromarray(labels).save(target)
    for index in np.unique(labels[labels < len(maps)]):
        print(f"{100 * (labels == index).mean():5.1f}%  {words['names'][index]}")


if __name__ == "__main__":
    main(*sys.argv[1:3])

"""Segmentation, the result of `CATSeg.predict`: labels and scores, and every way out of them.

Shape letters: H, W image; T classes.
"""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from cat_seg.drawing import OPACITY, draw_segmentation, save_picture
from cat_seg.errors import CATSegError, MissingPackageError
from cat_seg.images import open_image
from cat_seg.label_maps import strips, text_inside, write_label_map
from cat_seg.palette import name_colors
from cat_seg.refinement import GUIDED_FILTER, Refinement, refine
from cat_seg.utils.files import atomic_write

BACKGROUND = "background"  # the name under which background words are reported


@dataclass(frozen=True, eq=False)
class Region:
    """A connected part of a class (pixels that touch at a side or a corner)."""

    name: str
    index: int  # into the classes
    score: float  # mean of its pixels, in [0, 1]
    box: tuple[int, int, int, int]  # x0, y0, x1, y1; the last two just outside
    area: int  # pixels
    crop: np.ndarray  # (y1 - y0, x1 - x0) bool, the mask inside the box
    size: tuple[int, int]  # H, W of the picture

    @property
    def mask(self) -> np.ndarray:
        """The region in the whole picture, (H, W) bool."""
        mask = np.zeros(self.size, bool)
        x0, y0, x1, y1 = self.box
        mask[y0:y1, x0:x1] = self.crop
        return mask

    def rle(self) -> dict[str, Any]:
        """Return the mask in COCO's run-length encoding, ready for JSON.

        Raises:
            MissingPackageError: pycocotools is not installed.
        """
        return encode_mask(self.mask)

    def polygon(self) -> np.ndarray:
        """Return the outer border through the centres of its pixels, (N >= 3, 2) as x, y.

        Holes are not in it. A region one or two pixels small gives the corners of its box.
        """
        x0, y0, x1, y1 = self.box
        contours, _ = cv2.findContours(
            self.crop.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x0, y0)
        )
        polygon = max(contours, key=len).reshape(-1, 2)
        if len(polygon) < 3:
            polygon = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        return polygon


class Segmentation:
    """A picture divided among words.

    Args:
        labels: (H, W) integers, an index into `classes`; -1 where none is good enough.
        scores: (H, W) in [0, 1], the probability of that label.
        classes: T names, as they are shown.
        synonyms: the words of each class, any of which finds it.
        image: (H, W, 3) uint8, RGB.
        path: of the picture.
        threshold: below which a pixel was left at -1.
        background: names of the classes that are reported as background.
        probability: computes the (H, W) probabilities of a class from its index.
        notes: remarks in plain words, such as "None of the words seem to be in this picture."
    """

    def __init__(
        self,
        *,
        labels: np.ndarray,
        scores: np.ndarray,
        classes: Sequence[str],
        synonyms: Sequence[Sequence[str]] | None = None,
        image: np.ndarray | None = None,
        path: str | None = None,
        threshold: float = 0.0,
        background: Sequence[str] = (),
        probability: Callable[[int], np.ndarray] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        assert labels.ndim == 2 and labels.shape == scores.shape, (labels.shape, scores.shape)
        assert image is None or image.shape == (*labels.shape, 3), (image.shape, labels.shape)
        assert synonyms is None or len(synonyms) == len(classes), (synonyms, classes)
        self.labels = labels
        self.scores = scores
        self.classes = tuple(classes)
        self.synonyms = None if synonyms is None else tuple(tuple(words) for words in synonyms)
        self.image = image
        self.path = path
        self.threshold = threshold
        self.background = tuple(background)
        self.notes = tuple(notes)
        self._probability = probability

    def __repr__(self) -> str:
        """Say what is in the picture, largest first."""
        height, width = self.labels.shape
        areas = list(self.areas().items())
        found = ", ".join(f"{name} {100 * share:.0f}%" for name, share in areas[:5])
        more = f", {len(areas) - 5} more" if len(areas) > 5 else ""
        return f"Segmentation({width}x{height}: {found or 'none of the words'}{more})"

    # ---- what is where ----

    def index(self, name: str) -> int:
        """Return the index of a class from its name or any of its synonyms; capitals do not count.

        Raises:
            CATSegError: there is no such word; the message says which come near.
        """
        for names in ([(name,) for name in self.classes], self.synonyms or ()):
            for index, words in enumerate(names):
                if _key(name) in map(_key, words):
                    return index
        near = difflib.get_close_matches(name, self.classes, 3) or self.classes[:8]
        raise CATSegError(
            f"{name!r} is none of this segmentation's {len(self.classes)} classes; "
            f"give one of them, such as {', '.join(map(repr, near))}"
        )

    def mask(self, name: str) -> np.ndarray:
        """Return where a class is, (H, W) bool; "background" is all background words.

        Raises:
            CATSegError: there is no such word.
        """
        if self.background and _key(name) == BACKGROUND:
            return np.isin(self.labels, self._background_indices())
        return np.asarray(self.labels == self.index(name))

    def probabilities(self, name: str) -> np.ndarray:
        """Return the probability of a class everywhere, (H, W), also where another one won.

        Raises:
            CATSegError: there is no such word, or this result came from a file.
        """
        index = self.index(name)
        if self._probability is None:
            raise CATSegError(
                f"The probabilities of {name!r} are not kept in a file: ask the result of "
                "model.predict(...) itself, before it is saved"
            )
        return self._probability(index)

    def probability_maps(self) -> np.ndarray:
        """Return the probabilities of all classes everywhere, (T, H, W) float32.

        That is four bytes a class and pixel; `probabilities` computes one class alone.

        Raises:
            CATSegError: this result came from a file.
        """
        return np.stack([self.probabilities(name) for name in self.classes])

    def refined(self, refinement: str | Refinement = GUIDED_FILTER) -> Segmentation:
        """Return the segmentation with masks that follow the picture better.

        The refinement sees the classes that are somewhere in `labels`, and these compete anew; all
        others keep their probabilities. The threshold stays.

        Args:
            refinement: a registered name or a function, see `cat_seg.refinement`.

        Raises:
            CATSegError: there is no such refinement, it returns something else than
                probabilities, or this result has no picture or came from a file.
        """
        found = np.flatnonzero(self._counts())
        if self.image is None or not len(found):
            if len(found):
                raise CATSegError("A refinement needs the picture, which this result does not have")
            return self
        before = np.stack([self.probabilities(self.classes[index]) for index in found])
        after = refine(refinement, self.image, before)
        scores = after.max(axis=0)
        labels = found[after.argmax(axis=0)].astype(self.labels.dtype)
        labels[scores < self.threshold] = -1
        maps = dict(zip(found.tolist(), after, strict=True))
        result = copy(self)
        result.labels, result.scores = labels, scores
        result._probability = lambda index: (
            maps[index] if index in maps else self.probabilities(self.classes[index])
        )
        return result

    def areas(self) -> dict[str, float]:
        """Return the share of the picture that each class has, largest first.

        Classes that are nowhere are left out, background words count as "background". What is
        missing to 1 is `unlabelled`.
        """
        counts = self._counts()
        background = set(self._background_indices())
        shares: dict[str, float] = {}
        for index in np.flatnonzero(counts):
            name = BACKGROUND if int(index) in background else self.classes[index]
            shares[name] = shares.get(name, 0.0) + float(counts[index]) / self.labels.size
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    @property
    def unlabelled(self) -> float:
        """The share of the picture where no class is good enough."""
        return 1 - float(self._counts().sum()) / self.labels.size

    def regions(self, min_area: int = 0) -> list[Region]:
        """Return the connected parts of all classes but background words, largest first.

        Args:
            min_area: pixels; smaller parts are left out.
        """
        regions = []
        for index in self._shown():
            mask = (self.labels == index).astype(np.uint8)
            left, top, width, height = cv2.boundingRect(mask)
            window = (slice(top, top + height), slice(left, left + width))
            _, parts, stats, _ = cv2.connectedComponentsWithStats(mask[window], connectivity=8)
            sums = np.bincount(parts.ravel(), self.scores[window].ravel(), len(stats))
            for part in range(1, len(stats)):
                x, y, w, h, area = (int(value) for value in stats[part])
                if area < min_area:
                    continue
                regions.append(
                    Region(
                        name=self.classes[index],
                        index=index,
                        score=float(sums[part]) / area,
                        box=(left + x, top + y, left + x + w, top + y + h),
                        area=area,
                        crop=parts[y : y + h, x : x + w] == part,
                        size=self._size,
                    )
                )
        return sorted(regions, key=lambda region: -region.area)

    # ---- pictures ----

    def plot(
        self,
        *,
        opacity: float = OPACITY,
        names: bool = True,
        legend: bool = True,
        outline: bool = True,
        original: bool = False,
        steady: bool = False,
    ) -> Image.Image:
        """Draw the classes over the picture.

        Args:
            opacity: of the colours, 0 to 1.
            names: write the names into the picture, where they fit.
            legend: list names and shares on the right, largest area first.
            outline: draw a line where classes meet.
            original: put the picture as it is on the left.
            steady: colour a class alike whichever others occur, as frames of a video need.

        Raises:
            CATSegError: the opacity is not within 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise CATSegError(f"opacity is from 0 (only the picture) to 1, not {opacity}")
        labels = self.labels
        classes = list(self.classes)
        background = self._background_indices()
        if background:  # one entry of the legend
            table = np.arange(-1, len(classes), dtype=np.int32)  # from -1 on
            table[[index + 1 for index in background]] = len(classes)
            labels = table[labels + 1]
            classes.append(BACKGROUND)
        return draw_segmentation(
            self.image,
            labels,
            classes,
            opacity=opacity,
            names=names,
            legend=legend,
            outline=outline,
            original=original,
            steady=steady,
        )

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows."""
        buffer = io.BytesIO()
        self.plot().save(buffer, format="PNG")
        return buffer.getvalue()

    # ---- files ----

    def save(self, folder: str | Path, stem: str | None = None) -> list[Path]:
        """Write STEM_overlay.jpg, the label map STEM_labels.png and STEM_labels.json.

        A label map holds class ids, the largest value of its type where there is none, and the
        names as text inside, so that they cannot come apart; `load` reads both. It is 8 or 16 bit;
        of more than 65 535 classes, it is a 32-bit STEM_labels.tif.

        Args:
            folder: made if missing.
            stem: beginning of the names, by default that of the picture, or "segmentation".

        Returns:
            The paths of overlay, label map and JSON.
        """
        stem = stem or (Path(self.path).stem if self.path else "segmentation")
        overlay = save_picture(Path(folder) / f"{stem}_overlay.jpg", self.plot())
        return [overlay, *self._save_label_map(Path(folder) / f"{stem}_labels.png")]

    def _save_label_map(self, path: Path) -> tuple[Path, Path]:
        about: dict[str, Any] = {"scores": self._mean_scores(), "notes": list(self.notes)}
        if self.path:
            about["image"] = self.path
        if self.threshold:
            about["threshold"] = self.threshold
        if self.background:
            about["background"] = list(self.background)
        if self.synonyms:
            about["synonyms"] = [list(words) for words in self.synonyms]
        return save_label_map(path, self.labels, self.classes, **about)

    @classmethod
    def load(cls, path: str | Path) -> Segmentation:
        """Read labels and names back from a label map that `save` wrote.

        The scores are not in it: they are NaN. The picture is not in it either.

        Raises:
            CATSegError: the file cannot be read, or has no names inside.
        """
        with open_image(path) as image:
            stored = np.asarray(image)
            text = text_inside(image)
        try:
            about = _About.parse(text)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CATSegError(
                f"{path} has no class names inside; give a label map that Segmentation.save wrote"
            ) from error
        labels = stored.astype(np.int32)
        labels[stored == about.unlabelled] = -1
        if labels.ndim != 2 or labels.max(initial=-1) >= len(about.classes) or labels.min() < -1:
            raise CATSegError(
                f"{path}: its pixels are none of the {len(about.classes)} classes that it names; "
                "give a label map as Segmentation.save wrote it"
            )
        return cls(
            labels=labels,
            scores=np.full(labels.shape, np.nan, np.float32),
            classes=about.classes,
            synonyms=about.synonyms,
            path=about.image,
            threshold=about.threshold,
            background=about.background,
            notes=about.notes,
        )

    def masks_png(self) -> dict[str, Image.Image]:
        """Return a picture a class that is cut out: RGBA, transparent where the class is not.

        Without the picture, the masks are filled with the colours of the classes.
        """
        shown = self._shown()
        colors = name_colors([self.classes[index] for index in shown])
        masks = {}
        for index, color in zip(shown, colors, strict=True):
            rgba = np.zeros((*self._size, 4), np.uint8)
            inside = self.labels == index
            rgba[inside, :3] = color if self.image is None else self.image[inside]
            rgba[inside, 3] = 255
            masks[self.classes[index]] = Image.fromarray(rgba)
        return masks

    def save_masks(self, folder: str | Path, stem: str | None = None) -> list[Path]:
        """Write the pictures of `masks_png` as STEM_ID_NAME.png.

        Returns:
            Their paths.
        """
        stem = stem or (Path(self.path).stem if self.path else "segmentation")
        paths = []
        for name, picture in self.masks_png().items():
            safe = "".join(c if c.isalnum() else "_" for c in name)[:60]
            file = Path(folder) / f"{stem}_{self.classes.index(name)}_{safe}.png"
            paths.append(save_picture(file, picture))
        return paths

    # ---- other programs' formats ----

    def to_coco(self, image_id: int = 1, min_area: int = 0) -> dict[str, Any]:
        """Return COCO's format, an annotation a region; a category's id is its index + 1.

        Raises:
            MissingPackageError: pycocotools is not installed.
        """
        height, width = self._size
        annotations = []
        for number, region in enumerate(self.regions(min_area), start=1):
            x0, y0, x1, y1 = region.box
            annotations.append(
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": region.index + 1,
                    "segmentation": region.rle(),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": region.area,
                    "iscrowd": 0,
                    "score": _number(region.score),
                }
            )
        file_name = Path(self.path).name if self.path else ""
        return {
            "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
            "annotations": annotations,
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(self.classes)],
        }

    def to_labelme(self, min_area: int = 0) -> dict[str, Any]:
        """Return the contents of a LabelMe file, a polygon a region (without its holes)."""
        height, width = self._size
        return {
            "version": "5.0.0",
            "flags": {},
            "shapes": [
                {
                    "label": region.name,
                    "points": region.polygon().astype(float).tolist(),
                    "group_id": None,
                    "shape_type": "polygon",
                    "flags": {},
                }
                for region in self.regions(min_area)
            ],
            "imagePath": Path(self.path).name if self.path else "",
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }

    def to_supervision(self, min_area: int = 0) -> Any:
        """Return `supervision.Detections`, one a region.

        Raises:
            MissingPackageError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise _missing("supervision", "to_supervision()") from error
        regions = self.regions(min_area)
        if not regions:
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=np.array([region.box for region in regions], np.float32),
            mask=np.stack([region.mask for region in regions]),
            confidence=np.array([region.score for region in regions], np.float32),
            class_id=np.array([region.index for region in regions]),
            data={"class_name": np.array([region.name for region in regions])},
        )

    # ---- beneath ----

    @property
    def _size(self) -> tuple[int, int]:
        return self.labels.shape[0], self.labels.shape[1]

    def _counts(self) -> np.ndarray:
        """Return pixels of each class, (T,)."""
        return _count(self.labels, len(self.classes))

    def _background_indices(self) -> list[int]:
        keys = set(map(_key, self.background))
        return [i for i, name in enumerate(self.classes) if _key(name) in keys]

    def _shown(self) -> list[int]:
        """Return the classes that occur, without background words."""
        background = set(self._background_indices())
        return [int(i) for i in np.flatnonzero(self._counts()) if int(i) not in background]

    def _mean_scores(self) -> dict[str, float | None]:
        """Return the mean score of each class that occurs, by name."""
        counts = self._counts()
        sums = _count(self.labels, len(self.classes), self.scores)
        return {self.classes[i]: _number(sums[i] / counts[i]) for i in np.flatnonzero(counts)}


@dataclass(frozen=True)
class _About:
    """What a label map tells of itself, which may have been written by anyone."""

    classes: list[str]
    unlabelled: int
    synonyms: list[list[str]] | None
    image: str | None
    threshold: float
    background: list[str]
    notes: list[str]

    @classmethod
    def parse(cls, text: Any) -> _About:
        """Parse the text inside.

        Raises:
            ValueError, KeyError, TypeError, RecursionError: if it is none of ours.
        """
        told = json.loads(text or "{}")
        if not isinstance(told, dict):
            raise TypeError("expected an object")
        synonyms, image = told.get("synonyms"), told.get("image")
        about = cls(
            classes=_strings(told["classes"]),
            unlabelled=int(told["unlabelled"]),
            synonyms=None if synonyms is None else [_strings(words) for words in synonyms],
            image=None if image is None else str(image),
            threshold=float(told.get("threshold", 0.0)),
            background=_strings(told.get("background", [])),
            notes=_strings(told.get("notes", [])),
        )
        if about.synonyms is not None and len(about.synonyms) != len(about.classes):
            raise ValueError("synonyms and classes differ in number")
        return about


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"expected a list of strings, got {type(value).__name__}")
    return value


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask (H, W) in COCO's run-length encoding, ready for JSON.

    Raises:
        MissingPackageError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise _missing("pycocotools", "run-length encoding") from error
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def save_label_map(
    path: str | Path, labels: np.ndarray, names: Sequence[str], **about: Any
) -> tuple[Path, Path]:
    """Write `path` (PNG of class ids) with its names inside as text, and as JSON beside it.

    The map is 8 bit up to 255 classes, 16 bit up to 65 535, else a 32-bit TIFF with the suffix
    .tif. Its largest value, "unlabelled" in the JSON, stands where there is no class.

    Args:
        path: PNG.
        labels: (H, W) integers; a value outside 0..T-1 is unlabelled.
        names: the T class names.
        about: what else the JSON is to hold.

    Returns:
        The paths of the map and of the JSON.
    """
    dtype = next(t for t in (np.uint8, np.uint16, np.int32) if len(names) <= np.iinfo(t).max)
    unlabelled = int(np.iinfo(dtype).max)
    stored = np.full(labels.shape, unlabelled, dtype)
    for rows in strips(labels):
        known = (labels[rows] >= 0) & (labels[rows] < len(names))
        np.copyto(stored[rows], labels[rows], where=known, casting="unsafe")
    contents = {
        **about,
        "height": labels.shape[0],
        "width": labels.shape[1],
        "unlabelled": unlabelled,
        "classes": [name.strip() for name in names],
        "present": summarize(labels, names),
    }
    file = Path(path).with_suffix(".tif") if dtype is np.int32 else Path(path)
    table = file.with_suffix(".json")
    # A TIFF's text is ASCII, and JSON can say everything in it.
    write_label_map(file, stored, json.dumps(contents, ensure_ascii=file.suffix == ".tif"))
    with atomic_write(table) as part:
        part.write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return file, table


def summarize(labels: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the classes that occur, largest area first, as {"id", "name", "pixels", "share"}."""
    counts = _count(labels, len(names))
    present = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    return [
        {
            "id": i,
            "name": names[i].strip(),
            "pixels": int(counts[i]),
            "share": round(float(counts[i]) / labels.size, 6),
        }
        for i in present
    ]


def _count(labels: np.ndarray, count: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Count the pixels of each of so many classes, or sum their weights."""
    total = np.zeros(count, np.int64 if weights is None else np.float64)
    for rows in strips(labels):
        known = (labels[rows] >= 0) & (labels[rows] < count)
        part = None if weights is None else weights[rows][known]
        total += np.bincount(labels[rows][known], part, count)
    return total


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


def _number(value: float) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return None if np.isnan(value) else round(float(value), 4)


def _missing(package: str, what: str) -> MissingPackageError:
    return MissingPackageError(f"{what} needs {package}, which is missing: pip install {package}")

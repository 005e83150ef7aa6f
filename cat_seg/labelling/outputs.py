"""The formats that labels of many pictures are written in, as other programs read them.

A format writes a file a picture, named by its key, or one a unit, named by its number. All of them
depend on nothing but the pictures, the words and the model: written again, they are the same bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from cat_seg.errors import MissingPackageError
from cat_seg.label_maps import write_label_map
from cat_seg.segmentation import Segmentation
from cat_seg.utils.files import atomic_write
from cat_seg.utils.text import printable

LEAST_AREA = 16  # pixels of a polygon or an annotation


class Output:
    """Writes one unit in one format: `add` each result, then `close`."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        self.index = 0  # of the next picture

    def add(self, key: str, result: Segmentation) -> None:
        """Write a picture's labels, or keep them for `close`."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what belongs to the whole unit."""


class Png(Output):
    """png/KEY.png: the class of each pixel, the largest value where there is none."""

    def add(self, key: str, result: Segmentation) -> None:
        write_label_map(self.folder / f"{key}.png", stored(result))


class Yolo(Output):
    """yolo/KEY.txt: a line a region: class, then its outline as x y in shares of the sides."""

    def add(self, key: str, result: Segmentation) -> None:
        height, width = result.labels.shape
        lines = []
        for region in result.regions(LEAST_AREA):
            outline = (region.polygon() + 0.5) / (width, height)
            numbers = " ".join(f"{value:.5f}" for value in outline.ravel())
            lines.append(f"{region.index} {numbers}\n")
        with atomic_write(self.folder / f"{key}.txt") as part:
            part.write_text("".join(lines), "utf-8")


class _Json(Output):
    """One JSON a unit."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self.content: Any = None

    def close(self) -> None:
        if self.content is not None:
            with atomic_write(self.folder / f"{self.number:06d}.json") as part:
                part.write_text(json.dumps(self.content, ensure_ascii=False) + "\n", "utf-8")


class Coco(_Json):
    """coco/NUMBER.json: a COCO file of regions in run-length encoding."""

    def add(self, key: str, result: Segmentation) -> None:
        one = result.to_coco(self.number * 1_000_000 + self.index, LEAST_AREA)
        one["images"][0]["file_name"] = key
        self.index += 1
        if self.content is None:
            self.content = {"images": [], "annotations": [], "categories": one["categories"]}
        self.content["images"] += one["images"]
        for annotation in one["annotations"]:
            annotation["id"] = self.number * 10_000_000 + len(self.content["annotations"])
            self.content["annotations"].append(annotation)


class LabelStudio(_Json):
    """labelstudio/NUMBER.json: tasks with polygons as predictions."""

    def add(self, key: str, result: Segmentation) -> None:
        height, width = result.labels.shape
        found = []
        for number, region in enumerate(result.regions(LEAST_AREA)):
            points = (region.polygon() + 0.5) * (100 / width, 100 / height)
            value = {"points": points.round(3).tolist(), "polygonlabels": [region.name]}
            found.append(
                {
                    "id": f"{self.index}-{number}",
                    "type": "polygonlabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": width,
                    "original_height": height,
                    "score": round(region.score, 4),
                    "value": value,
                }
            )
        self.index += 1
        self.content = self.content or []
        prediction = {"model_version": "cat-seg", "result": found}
        self.content.append({"data": {"image": key}, "predictions": [prediction]})


class Cvat(Output):
    """cvat/NUMBER.xml: "CVAT for images 1.1", a mask a region; a picture is found by its name.

    A mask is the lengths of runs in its box, row by row, of 0 and 1 in turns (CVAT's
    documentation, "CVAT for image: mask").
    """

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self.root = ElementTree.Element("annotations")
        ElementTree.SubElement(self.root, "version").text = "1.1"

    def add(self, key: str, result: Segmentation) -> None:
        height, width = result.labels.shape
        about = {"id": self.index, "name": printable(key), "width": width, "height": height}
        image = ElementTree.SubElement(
            self.root, "image", {name: str(value) for name, value in about.items()}
        )
        self.index += 1
        for region in result.regions(LEAST_AREA):
            x0, y0, x1, y1 = region.box
            flat = np.concatenate(([False], region.crop.ravel()))
            ends = [0, *np.flatnonzero(flat[1:] != flat[:-1]).tolist(), region.crop.size]
            box = {"left": x0, "top": y0, "width": x1 - x0, "height": y1 - y0, "z_order": 0}
            ElementTree.SubElement(
                image,
                "mask",
                {name: str(value) for name, value in box.items()},
                label=printable(region.name),
                source="auto",
                occluded="0",
                rle=", ".join(map(str, np.diff(ends))),
            )

    def close(self) -> None:
        ElementTree.indent(self.root)
        with atomic_write(self.folder / f"{self.number:06d}.xml") as part:
            ElementTree.ElementTree(self.root).write(part, "utf-8", xml_declaration=True)


class WebDataset(Output):
    """webdataset/NUMBER.tar: KEY.png and KEY.json of each picture."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self.members: list[tuple[str, bytes]] = []

    def add(self, key: str, result: Segmentation) -> None:
        self.members.append((f"{key}.png", encoded(result)))
        self.members.append((f"{key}.json", json.dumps(result.areas()).encode()))

    def close(self) -> None:
        with (
            atomic_write(self.folder / f"{self.number:06d}.tar") as part,
            tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, content in self.members:
                info = tarfile.TarInfo(name)  # of no time and nobody
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


class Parquet(Output):
    """parquet/NUMBER.parquet: key, height, width, labels (PNG), areas (JSON); classes inside."""

    def __init__(self, folder: Path, number: int) -> None:
        super().__init__(folder, number)
        self.rows: list[dict[str, Any]] = []
        self.classes: Sequence[str] = ()

    def add(self, key: str, result: Segmentation) -> None:
        height, width = result.labels.shape
        self.classes = result.classes
        areas = json.dumps(result.areas(), ensure_ascii=False)
        row = {"key": key, "height": height, "width": width, "labels": encoded(result)}
        self.rows.append({**row, "areas": areas})

    def close(self) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise MissingPackageError.of_extra("Parquet files", "pyarrow", "label") from error
        table = pyarrow.Table.from_pylist(self.rows)
        table = table.replace_schema_metadata({"classes": json.dumps([*self.classes])})
        with atomic_write(self.folder / f"{self.number:06d}.parquet") as part:
            parquet.write_table(table, part)


FORMATS: dict[str, Callable[[Path, int], Output]] = {
    "png": Png,
    "coco": Coco,
    "yolo": Yolo,
    "webdataset": WebDataset,
    "parquet": Parquet,
    "labelstudio": LabelStudio,
    "cvat": Cvat,
}


def stored(result: Segmentation) -> np.ndarray:
    """Return labels in the smallest type, its largest value where there is no class."""
    count = len(result.classes)
    dtype = next(t for t in (np.uint8, np.uint16, np.int32) if count <= np.iinfo(t).max)
    return np.where(result.labels < 0, np.iinfo(dtype).max, result.labels).astype(dtype)


def encoded(result: Segmentation) -> bytes:
    """Return `stored` as the content of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(stored(result)).save(buffer, format="PNG")
    return buffer.getvalue()

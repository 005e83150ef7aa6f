"""Label maps from other formats, from tiny files of each."""

import base64
import io
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from cat_seg.errors import CATSegError
from cat_seg.label_maps import read_label_map
from cat_seg.plugin.data.imports import import_labels
from cat_seg.plugin.data.imports.label_studio import decode_rle
from cat_seg.plugin.data.imports.palettes import voc_color


@pytest.fixture
def take(tmp_path):
    """Imports a source; the summary, the entry's keys and the label maps by name."""

    def _take(kind, source, **options):
        output = tmp_path / "out"
        summary, entry = import_labels(kind, source, output, **options)
        labels = output / "labels"
        maps = {
            str(path.relative_to(labels).with_suffix("")): read_label_map(path)
            for path in sorted(labels.rglob("*.png"))
        }
        return summary, entry, maps, json.loads((output / "names.json").read_text())

    return _take


def panoptic(folder: Path, file_name: str = "a.png") -> Path:
    ids = np.array([[0, 1, 300], [70000, 1, 300]])
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    (folder / "pan").mkdir()
    Image.fromarray(colors).save(folder / "pan/a.png")
    segments = [(1, 9, 0), (300, 4, 0), (70000, 9, 1)]
    content = {
        "categories": [{"id": 9, "name": "sky"}, {"id": 4, "name": "car"}],
        "annotations": [
            {
                "file_name": file_name,
                "segments_info": [
                    {"id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in segments
                ],
            }
        ],
    }
    (folder / "pan.json").write_text(json.dumps(content))
    return folder / "pan.json"


def test_coco_panoptic(take, tmp_path):
    summary, _, maps, names = take("coco-panoptic", panoptic(tmp_path))
    assert names == ["car", "sky"] and summary.written == 1
    np.testing.assert_array_equal(maps["a"], [[255, 1, 0], [1, 1, 0]])
    summary, *_ = take("coco-panoptic", tmp_path / "pan.json", masks=tmp_path / "pan")
    assert (summary.written, summary.kept) == (0, 1)


def test_a_segment_that_the_json_lacks_is_told(take, tmp_path):
    source = panoptic(tmp_path)
    content = json.loads(source.read_text())
    content["annotations"][0]["segments_info"].pop()
    source.write_text(json.dumps(content))
    summary, _, maps, _ = take("coco-panoptic", source)
    assert not maps and "segments [70000] are in the PNG, not in the JSON" in str(summary)


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "C:/a.png"])
def test_names_stay_in_the_folder(take, tmp_path, name):
    with pytest.raises(CATSegError, match="leads out of its folder"):
        take("coco-panoptic", panoptic(tmp_path, name))


def test_coco_instances(take, tmp_path):
    large = [[1.0, 1.0, 9.0, 1.0, 9.0, 7.0, 1.0, 7.0]]
    two_parts = [[2.0, 2.0, 4.0, 2.0, 4.0, 4.0], [5.0, 5.0, 8.0, 5.0, 8.0, 6.0, 5.0, 6.0]]
    region = np.zeros((8, 10), np.uint8, order="F")
    region[0, :2] = 1
    rle = coco_mask.encode(region)
    content = {
        "categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}],
        "images": [
            {"id": 1, "file_name": "val/a.jpg", "height": 8, "width": 10},
            {"id": 2, "file_name": "val/empty.jpg", "height": 8, "width": 10},
        ],
        "annotations": [
            {"image_id": 1, "category_id": 7, "segmentation": two_parts},
            {"image_id": 1, "category_id": 3, "segmentation": large},
            {
                "image_id": 1,
                "category_id": 7,
                "segmentation": {"size": [8, 10], "counts": rle["counts"].decode()},
            },
        ],
    }
    (tmp_path / "i.json").write_text(json.dumps(content))
    summary, _, maps, names = take("coco-instances", tmp_path / "i.json")
    expected = np.full((8, 10), 255)
    for shape, label in ((large, 0), (two_parts, 1)):  # the smaller on top
        for part in shape:
            drawn = coco_mask.decode(coco_mask.frPyObjects([part], 8, 10))[..., 0]
            expected[drawn > 0] = label
    expected[0, :2] = 1
    assert names == ["dog", "cat"] and {0, 1, 255} == set(expected.ravel())
    np.testing.assert_array_equal(maps["val/a"], expected)
    assert [*maps] == ["val/a"] and summary.skipped == {"no annotations": ["val/empty"]}


def test_labelme(take, tmp_path):
    bitmap = io.BytesIO()
    Image.fromarray(np.array([[True, False], [True, True]])).save(bitmap, "PNG")
    shapes = [
        {"label": "lawn", "points": [[0, 0], [9, 0], [9, 9], [0, 9]], "shape_type": "polygon"},
        {"label": "ball", "points": [[5, 5], [5, 7]], "shape_type": "circle"},
        {"label": "__ignore__", "points": [[3, 2], [0, 1]], "shape_type": "rectangle"},
        {
            "label": "ball",
            "points": [[8, 0], [9, 1]],
            "shape_type": "mask",
            "mask": base64.b64encode(bitmap.getvalue()).decode(),
        },
    ]
    (tmp_path / "in/sub").mkdir(parents=True)
    file = tmp_path / "in/sub/a.json"
    file.write_text(json.dumps({"shapes": shapes, "imageHeight": 12, "imageWidth": 12}))
    (tmp_path / "in/settings.json").write_text("{}")
    _, _, maps, names = take("labelme", tmp_path / "in")
    picture = Image.new("L", (12, 12), 255)
    pen = ImageDraw.Draw(picture)
    pen.polygon([(0, 0), (9, 0), (9, 9), (0, 9)], outline=1, fill=1)
    pen.ellipse((3, 3, 7, 7), outline=0, fill=0)
    pen.rectangle((0, 1, 3, 2), outline=255, fill=255)
    expected = np.array(picture)
    expected[0, 8] = expected[1, 8] = expected[1, 9] = 0
    assert names == ["ball", "lawn"]
    np.testing.assert_array_equal(maps["sub/a"], expected)


def test_an_unknown_shape_is_told_and_the_rest_is_done(take, tmp_path):
    for name, kind in (("a", "spiral"), ("b", "polygon")):
        shape = {"label": "x", "points": [[0, 0], [3, 0], [3, 3]], "shape_type": kind}
        content = {"shapes": [shape], "imageHeight": 4, "imageWidth": 4}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    summary, _, maps, _ = take("labelme", tmp_path)
    assert [*maps] == ["b"] and summary.wrong == {"a shape 'spiral' of 3 points is unknown": ["a"]}


def test_the_colour_map_of_voc():
    shown = [f"{voc_color(i):06x}" for i in (0, 1, 2, 3, 15, 20, 255)]
    assert shown == ["000000", "800000", "008000", "808000", "c08080", "004080", "e0e0c0"]


@pytest.mark.parametrize("indexed", [True, False])
def test_voc(take, tmp_path, indexed):
    (tmp_path / "in").mkdir()
    image = Image.fromarray(np.array([[0, 1, 20, 255]], np.uint8))
    colors = [voc_color(i) for i in range(256)]
    image.putpalette([v for c in colors for v in (c >> 16, c >> 8 & 255, c & 255)])
    (image if indexed else image.convert("RGB")).save(tmp_path / "in/a.png")
    _, _, maps, names = take("voc", tmp_path / "in")
    assert len(names) == 21 and names[:2] == ["background", "aeroplane"]
    np.testing.assert_array_equal(maps["a"], [[0, 1, 20, 255]])


def test_a_labelmap_tells_names_and_colours(take, tmp_path):
    folder = tmp_path / "in/SegmentationClass"
    folder.mkdir(parents=True)
    Image.fromarray(np.array([[[0, 0, 0], [9, 8, 7]]], np.uint8)).save(folder / "a.png")
    (tmp_path / "in/labelmap.txt").write_text("# label:color\nroof:9,8,7::\nbackground:0,0,0::\n")
    _, _, maps, names = take("voc", folder)
    assert names == ["roof", "background"]
    np.testing.assert_array_equal(maps["a"], [[1, 0]])


def test_cityscapes(take, tmp_path):
    (tmp_path / "in/ulm").mkdir(parents=True)
    values = np.array([[7, 33, 0, 29, 26]], np.uint8)
    Image.fromarray(values).save(tmp_path / "in/ulm/ulm_1_gtFine_labelIds.png")
    Image.fromarray(values).save(tmp_path / "in/ulm/ulm_1_gtFine_instanceIds.png")
    _, entry, maps, names = take("cityscapes", tmp_path / "in")
    assert len(names) == 19 and (names[0], names[13], names[-1]) == ("road", "car", "bicycle")
    np.testing.assert_array_equal(maps["ulm/ulm_1"], [[0, 18, 255, 255, 13]])
    assert entry["IMAGE_SUFFIX"] == "_leftImg8bit"


def bitmap(mask, **options) -> str:
    """A PNG as Supervisely writes it: two colours, of which the first is transparent."""
    image, file = Image.fromarray(np.array(mask, np.uint8)), io.BytesIO()
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(file, "PNG", **options)
    return base64.b64encode(zlib.compress(file.getvalue())).decode()


def test_supervisely(take, tmp_path):
    square = {"exterior": [[0, 0], [6, 0], [6, 6.4], [0, 6]]}
    hole, clear = [[2, 2], [4, 2], [4, 4], [2, 4]], bitmap([[0, 1]], transparency=0)
    objects = [
        ("lawn", "polygon", {"points": square | {"interior": [hole]}}),
        ("pond", "rectangle", {"points": {"exterior": [[9, 1], [7, 0]], "interior": []}}),
        ("pond", "bitmap", {"bitmap": {"data": clear, "origin": [0, 0]}}),
        ("pond", "bitmap", {"bitmap": {"data": bitmap([[1, 0]]), "origin": [9, 7]}}),
    ]
    content = {
        "size": {"height": 8, "width": 10},
        "objects": [{"classTitle": t, "geometryType": kind, **one} for t, kind, one in objects],
    }
    source = tmp_path / "project"
    (source / "one/ann").mkdir(parents=True)
    (source / "meta.json").write_text(
        json.dumps({"classes": [{"title": "pond"}, {"title": "lawn"}]})
    )
    (source / "one/ann/a.jpg.json").write_text(json.dumps(content))
    line = content | {"objects": [{"classTitle": "lawn", "geometryType": "line", "points": square}]}
    (source / "one/ann/b.jpg.json").write_text(json.dumps(line))
    summary, entry, maps, names = take("supervisely", source)
    expected = np.full((8, 10), 255)
    expected[:7, :7] = 1
    expected[2:5, 2:5] = 255  # a hole with its border
    expected[:2, 7:] = 0
    expected[0, 1] = expected[7, 9] = 0  # the rest of that bitmap is outside
    assert names == ["pond", "lawn"] and entry["IMAGES"] == str(source)
    np.testing.assert_array_equal(maps["one/img/a"], expected)
    assert summary.wrong == {"a shape 'line' is no region": ["one/img/b"]}
    (source / "one/ann/a.png.json").write_text(json.dumps(content))
    with pytest.raises(CATSegError, match="another image has the name one/img/a"):
        take("supervisely", source)


def packed(values, runs, bits=8, lengths=(3, 4, 8, 16)) -> list[int]:
    """Run-length code by its definition; runs are (length, repeats), each as short as it can be."""
    code = f"{len(values):032b}{bits - 1:05b}" + "".join(f"{n - 1:04b}" for n in lengths)
    at = 0
    for length, repeats in runs:
        kind = next(k for k, n in enumerate(lengths) if length - 1 < 1 << n)
        code += f"{repeats}{kind:02b}{length - 1:0{lengths[kind]}b}"
        code += "".join(f"{v:0{bits}b}" for v in values[at : at + (1 if repeats else length)])
        at += length
    code += "0" * (-len(code) % 8)
    return [int(code[i : i + 8], 2) for i in range(0, len(code), 8)]


def test_the_code_of_a_brush():
    values = [0] * 300 + [255] * 20 + [1, 2, 3] + [7]
    code = packed(values, [(300, 1), (20, 1), (3, 0), (1, 1)])
    assert decode_rle(code, len(values)).tolist() == values
    # By hand: 4 values of 8 bits; lengths of 1, 1, 1 and 1 bit; 2 x 5, then 6 and 7 as they are.
    bits = "0000000000000000000000000000010000111" + 4 * "0000"
    bits += "100100000101" + "00010000011000000111"
    bits += "0" * (-len(bits) % 8)
    by_hand = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert decode_rle(by_hand, 4).tolist() == [5, 5, 6, 7]
    with pytest.raises(CATSegError, match="has 324 values; expected 4"):
        decode_rle(code, 4)
    with pytest.raises(CATSegError, match="ends too early"):
        decode_rle(code[:12], len(values))


def test_label_studio(take, tmp_path):
    def region(kind, label, **value):
        size = {"original_width": 20, "original_height": 10, "image_rotation": 0}
        return {"type": kind, "value": {**value, kind: [label]}, **size}

    mask = np.zeros((10, 20), np.uint8)
    mask[9, :5] = 255
    rgba = np.repeat(mask.ravel(), 4).tolist()
    code = packed(rgba, [(180 * 4, 1), (20, 1), (60, 1)])
    triangle = [[10, 10], [60, 10], [10, 80]]  # percent
    result = [
        region("polygonlabels", "roof", points=triangle, closed=True),
        region("brushlabels", "wall", format="rle", rle=code),
        region("rectanglelabels", "wall", x=75, y=10, width=25, height=50, rotation=0),
        region("ellipselabels", "roof", x=90, y=80, radiusX=5, radiusY=10, rotation=0),
        {"type": "choices", "value": {"choices": ["blurred"]}},
    ]
    other = [region("brushlabels", "not this one", format="rle", rle=code)]
    tasks = [
        {
            "id": 1,
            "data": {"note": "x", "image": "/data/upload/3/0a1b2c3d-r%C3%B6f%20a.JPG"},
            "annotations": [
                {"result": other},
                {"result": result, "ground_truth": True},
            ],
        },
        {"id": 2, "data": {"image": "/data/upload/3/00000000-b.jpg"}, "annotations": []},
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    summary, _, maps, names = take("label-studio", tmp_path / "export.json")
    drawn = coco_mask.decode(coco_mask.frPyObjects([[2, 1, 12, 1, 2, 8]], 10, 20))[..., 0]
    expected = np.where(drawn, 0, 255)
    expected[9, :5] = 1
    expected[1:6, 15:] = 1
    expected[7:9, 17:19] = 0
    assert names == ["roof", "wall"] and summary.skipped == {"no regions with a label": ["b"]}
    np.testing.assert_array_equal(maps["röf a"], expected)


def test_what_has_changed_is_imported_again(take, tmp_path):
    def write(size):
        shape = {"label": "x", "points": [[0, 0], [size, 0], [size, size]], "shape_type": "polygon"}
        content = {"shapes": [shape], "imageHeight": 9, "imageWidth": 9}
        (tmp_path / "in/a.json").write_text(json.dumps(content))

    (tmp_path / "in").mkdir()
    write(3)
    assert take("labelme", tmp_path / "in")[0].written == 1
    assert take("labelme", tmp_path / "in")[0].kept == 1
    write(8)
    os.utime(tmp_path / "out/labels/a.png", (1, 1))
    summary, _, maps, _ = take("labelme", tmp_path / "in")
    assert summary.written == 1 and maps["a"][0, 8] == 0


def test_more_than_255_classes_are_16_bit(take, tmp_path):
    source = panoptic(tmp_path)
    content = json.loads(source.read_text())
    content["categories"] += [{"id": i, "name": f"class {i}"} for i in range(10, 310)]
    source.write_text(json.dumps(content))
    _, entry, maps, names = take("coco-panoptic", source)
    assert len(names) == 302 and entry["IGNORE"] == 65535
    assert maps["a"].dtype == np.uint16 and maps["a"][0, 0] == 65535
    content["categories"] += [{"id": i, "name": f"class {i}"} for i in range(310, 65600)]
    source.write_text(json.dumps(content))
    with pytest.raises(CATSegError, match="classes; label maps here hold 65535"):
        take("coco-panoptic", source)


def test_another_vocabulary_does_not_mix(take, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/names.json").write_text('["other"]')
    with pytest.raises(CATSegError, match=r"names.json has other classes than .*pan.json"):
        take("coco-panoptic", panoptic(tmp_path))


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("coco-panoptic", "[]", "no list 'annotations'"),
        ("coco-instances", "{", "cannot be read as JSON"),
        ("labelme", "{}", "nothing to import as labelme"),
        ("label-studio", "{}", "no list of tasks"),
        ("label-studio", '[{"annotations": [], "data": {}}]', "names no image"),
        ("label-studio", '[{"annotations": [{}], "data": {}}]', "not as label-studio has it"),
        ("supervisely", "{}", "nothing to import as supervisely"),
    ],
)
def test_other_files_are_refused(take, tmp_path, kind, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(CATSegError, match=said):
        take(kind, tmp_path / "a.json")
    with pytest.raises(CATSegError, match="no such file"):
        take(kind, tmp_path / "none.json")

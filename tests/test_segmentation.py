import json
import sys

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cat_seg.errors import CATSegError
from cat_seg.segmentation import Segmentation, save_label_map, summarize

LABELS = np.array([[0, 0, 0, 1], [0, 0, -1, 1], [2, 2, -1, 0]])


def make(**changes):
    options = dict(
        labels=LABELS,
        scores=np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
        classes=("cat", "sofa", "窓"),
        synonyms=(("cat",), ("sofa", "couch"), ("窓", "window")),
        image=np.arange(36, dtype=np.uint8).reshape(3, 4, 3),
        path="photos/yard.jpg",
        threshold=0.25,
    )
    return Segmentation(**(options | changes))


def test_masks_by_name_and_synonym():
    result = make()
    np.testing.assert_array_equal(result.mask("Cat"), LABELS == 0)
    np.testing.assert_array_equal(result.mask(" couch"), LABELS == 1)
    with pytest.raises(CATSegError, match=r"'cats' is none of .*'cat'"):
        result.mask("cats")


def test_areas():
    areas = make().areas()
    assert list(areas.items()) == [
        ("cat", pytest.approx(0.5)),
        ("sofa", pytest.approx(1 / 6)),
        ("窓", pytest.approx(1 / 6)),
    ]
    assert make().unlabelled == pytest.approx(1 / 6)
    assert repr(make()).startswith("Segmentation(4x3: cat 50%")


def test_background_words_are_reported_as_background():
    result = make(background=("sofa", "窓"))
    assert result.areas() == pytest.approx({"cat": 0.5, "background": 1 / 3})
    np.testing.assert_array_equal(result.mask("background"), LABELS > 0)
    assert {region.name for region in result.regions()} == {"cat"}
    assert result.plot().width > 800


def test_probabilities():
    maps = np.random.default_rng(0).random((3, 3, 4))
    np.testing.assert_array_equal(
        make(probability=maps.__getitem__).probabilities("couch"), maps[1]
    )
    with pytest.raises(CATSegError, match="predict"):
        make().probabilities("cat")


def test_regions():
    result = make()
    regions = result.regions()
    assert [(r.name, r.area, r.box) for r in regions] == [
        ("cat", 5, (0, 0, 3, 2)),
        ("sofa", 2, (3, 0, 4, 2)),
        ("窓", 2, (0, 2, 2, 3)),
        ("cat", 1, (3, 2, 4, 3)),
    ]
    union = sum(region.mask.astype(int) * (region.index + 1) for region in regions) - 1
    np.testing.assert_array_equal(union, LABELS)
    assert regions[1].score == pytest.approx(result.scores[:2, 3].mean())
    assert len(result.regions(min_area=3)) == 1
    assert all(len(region.polygon()) >= 3 for region in regions)


def test_polygon_is_the_border():
    labels = np.full((9, 9), -1)
    labels[2:6, 3:8] = 0
    (region,) = make(labels=labels, scores=np.ones((9, 9)), image=None).regions()
    assert {tuple(p) for p in region.polygon()} == {(3, 2), (3, 5), (7, 5), (7, 2)}


def test_rle_and_coco():
    coco = pytest.importorskip("pycocotools.mask")
    contents = make().to_coco(image_id=7)
    json.dumps(contents)
    names = {category["id"]: category["name"] for category in contents["categories"]}
    drawn = np.full(LABELS.shape, "", object)
    for annotation in contents["annotations"]:
        assert annotation["image_id"] == 7
        drawn[coco.decode(annotation["segmentation"]) > 0] = names[annotation["category_id"]]
    expected = np.array(["cat", "sofa", "窓", ""], object)[LABELS]
    np.testing.assert_array_equal(drawn, expected)


def test_labelme():
    contents = json.loads(json.dumps(make().to_labelme()))
    assert [shape["label"] for shape in contents["shapes"]] == ["cat", "sofa", "窓", "cat"]
    assert (contents["imageHeight"], contents["imageWidth"]) == (3, 4)


def test_supervision():
    pytest.importorskip("supervision")
    detections = make().to_supervision()
    assert detections.class_id.tolist() == [0, 1, 2, 0] and detections.mask.shape == (4, 3, 4)
    assert len(make(labels=np.full((3, 4), -1)).to_supervision()) == 0


@pytest.mark.parametrize("package", ["supervision", "pycocotools"])
def test_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CATSegError, match=f"pip install {package}"):
        make().to_supervision() if package == "supervision" else make().to_coco()


def test_plot():
    png = make()._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert make(image=None).plot(legend=False).size == (800, 600)
    with pytest.raises(CATSegError, match="opacity"):
        make().plot(opacity=50)


def test_save_and_load(tmp_path):
    overlay, png, table = make().save(tmp_path / "new")
    assert [p.name for p in (overlay, png, table)] == [
        *("yard_overlay.jpg", "yard_labels.png", "yard_labels.json"),
    ]
    contents = json.loads(table.read_text("utf-8"))
    assert contents["classes"] == ["cat", "sofa", "窓"] and contents["unlabelled"] == 255
    table.unlink()  # the names are in the picture
    loaded = Segmentation.load(png)
    np.testing.assert_array_equal(loaded.labels, LABELS)
    assert loaded.classes == make().classes and loaded.synonyms == make().synonyms
    assert loaded.path == "photos/yard.jpg" and loaded.threshold == 0.25
    assert loaded.save(tmp_path / "again", "x")[1].name == "x_labels.png"  # NaN is no JSON
    assert "NaN" not in (tmp_path / "again" / "x_labels.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("count", "suffix", "unlabelled"),
    [
        (255, ".png", 255),
        (256, ".png", 65535),
        (65535, ".png", 65535),
        (65536, ".tif", 2**31 - 1),
    ],
)
def test_no_label_wraps_around(tmp_path, count, suffix, unlabelled):
    names = [f"näme {i}" for i in range(count)]
    labels = np.array([[0, count - 1], [-1, 7]])
    file, table = save_label_map(tmp_path / "a.png", labels, names, image="photo.jpg")
    assert file.suffix == suffix
    with Image.open(file) as image:
        assert np.asarray(image).tolist() == [[0, count - 1], [unlabelled, 7]]
    contents = json.loads(table.read_text("utf-8"))
    assert contents["unlabelled"] == unlabelled and contents["image"] == "photo.jpg"
    loaded = Segmentation.load(file)
    np.testing.assert_array_equal(loaded.labels, labels)
    assert loaded.classes == tuple(names)


def test_load_says_what_is_wrong(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "plain.png")
    with pytest.raises(CATSegError, match=r"plain.png has no class names"):
        Segmentation.load(tmp_path / "plain.png")
    with pytest.raises(CATSegError, match=r"none.png does not exist"):
        Segmentation.load(tmp_path / "none.png")


def test_transparent_masks(tmp_path):
    result = make()
    rgba = np.asarray(result.masks_png()["cat"])
    np.testing.assert_array_equal(rgba[..., 3], np.where(LABELS == 0, 255, 0))
    np.testing.assert_array_equal(rgba[LABELS == 0, :3], result.image[LABELS == 0])
    names = [path.name for path in result.save_masks(tmp_path)]
    assert names == ["yard_0_cat.png", "yard_1_sofa.png", "yard_2_窓.png"]


def test_summarize_orders_by_area():
    labels = np.array([[2, 2, 2, 0], [255, 255, -1, -1]])
    assert summarize(labels, ["cat", "sofa, couch", "bed "]) == [
        {"id": 2, "name": "bed", "pixels": 3, "share": 0.375},
        {"id": 0, "name": "cat", "pixels": 1, "share": 0.125},
    ]


@pytest.mark.parametrize(
    "told",
    [
        "[]",
        '{"classes": ["a"]}',
        '{"classes": "ab", "unlabelled": 255}',
        '{"classes": [1, 2], "unlabelled": 255}',
        '{"classes": ["a", "b"], "unlabelled": [255]}',
        '{"classes": ["a", "b"], "unlabelled": 255, "synonyms": [["a"]]}',
        '{"classes": ["a", "b"], "unlabelled": 255, "synonyms": 3}',
        '{"classes": ["a"], "unlabelled": 255}',
        "[" * 100_000,
    ],
)
def test_a_label_map_that_tells_nonsense_of_itself_is_refused(tmp_path, told):
    inside = PngImagePlugin.PngInfo()
    inside.add_itxt("cat_seg", told)
    Image.fromarray(np.ones((2, 3), np.uint8)).save(tmp_path / "a.png", pnginfo=inside)
    with pytest.raises(CATSegError, match=r"a\.png"):
        Segmentation.load(tmp_path / "a.png")

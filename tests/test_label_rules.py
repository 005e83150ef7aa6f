"""What values of label maps mean: index, offset, map, palette, ignored values."""

import pickle

import numpy as np
import pytest
from PIL import Image

from cat_seg.errors import CATSegError
from cat_seg.label_rules import IGNORED, LabelRule, parse_rule

NAMES = ["road", "car", "sky"]


def rule(**options):
    return parse_rule("yard", options, NAMES, NAMES.index)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize(
    ("options", "values", "classes"),
    [
        ({}, [0, 2, 255], [0, 2, -1]),
        ({"IGNORE": [9, 200]}, [0, 9, 200], [0, -1, -1]),
        ({"OFFSET": 1}, [0, 1, 3, 255], [-1, 0, 2, -1]),
        ({"OFFSET": 1, "IGNORE": 0}, [0, 1, 3], [-1, 0, 2]),
        ({"MAP": {7: 0, "26": "car", 0: "ignore"}}, [7, 26, 0, 255], [0, 1, -1, -1]),
        ({"MAP": {0: 0, 255: 1}}, [0, 255], [0, 1]),
        ({"MAP": {7: 0, "other": "ignore"}}, [7, 99, 255], [0, -1, -1]),
        ({"MAP": {7: 0, "other": 2}, "IGNORE": []}, [7, 99, 255], [0, 2, 2]),
    ],
)  # fmt: skip
def test_values_become_classes(options, values, classes, depth):
    found = pickle.loads(pickle.dumps(rule(**options))).apply(np.array([values], depth))
    np.testing.assert_array_equal(found, [classes])


def test_an_ignored_value_may_be_below_zero():
    values = np.array([[-1, 2]], np.int16)
    np.testing.assert_array_equal(rule(IGNORE=-1).apply(values), [[IGNORED, 2]])


@pytest.mark.parametrize(
    ("options", "values", "said"),
    [
        ({}, [3, 0], r"label 3 is out of range; expected 0 to 2, or 255 to ignore"),
        ({"OFFSET": 1}, [4], r"label 4 is out of range; expected 1 to 3"),
        ({"MAP": {7: 0}}, [8, 9], r"label 8, 9 is not in MAP; add it"),
    ],
)
@pytest.mark.parametrize("depth", [np.uint8, np.int32])
def test_values_of_no_class_are_named(options, values, said, depth):
    with pytest.raises(CATSegError, match=said):
        rule(**options).apply(np.array([values], depth))


@pytest.mark.parametrize(
    "palette",
    [
        ["#804080", [0, 0, 142], "70, 130, 180"],
        {"128 64 128": "road", "#00008e": 1, "70,130,180": "sky"},
    ],
)
def test_colours_become_classes(tmp_path, palette):
    colors = np.array([[[128, 64, 128], [0, 0, 142], [70, 130, 180], [0, 0, 0]]], np.uint8)
    Image.fromarray(colors).save(tmp_path / "colors.png")
    found = rule(PALETTE=palette, IGNORE="#000000").read(tmp_path / "colors.png")
    np.testing.assert_array_equal(found, [[0, 1, 2, IGNORED]])
    with pytest.raises(CATSegError, match=r"colors.png: label #000000 is not in PALETTE"):
        rule(PALETTE=palette).read(tmp_path / "colors.png")


def test_indexed_colours_are_colours_where_a_palette_is_given(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([0, 0, 142, 128, 64, 128])
    image.save(tmp_path / "indexed.png")
    found = rule(PALETTE=["#804080", "#00008e"]).read(tmp_path / "indexed.png")
    np.testing.assert_array_equal(found, [[1, 0]])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"MAP": {7: 3}}, r"yard: MAP has the class 3; expected one of 0 to 2, a name"),
        ({"MAP": {"x": 0}}, r"yard: MAP has 'x'; expected an integer"),
        ({"MAP": [1, 2]}, r"yard: MAP is \[1, 2\]"),
        ({"PALETTE": ["#80408"]}, r"yard: PALETTE has the colour '#80408'"),
        ({"PALETTE": [[1, 2, 300]]}, r"yard: PALETTE has the colour"),
        ({"IGNORE": 1}, r"ignore label 1 is also the label of 'car'"),
        ({"OFFSET": 1, "IGNORE": 3}, r"ignore label 3 is also the label of 'sky'"),
        ({"OFFSET": 0.5}, r"OFFSET has 0.5"),
        ({"MAP": {0: 0}, "PALETTE": ["#000000"]}, r"both given"),
        ({"MAP": {0: 0}, "OFFSET": 1}, r"OFFSET has no meaning"),
    ],
)
def test_mistakes_name_their_key(options, said):
    with pytest.raises(CATSegError, match=said):
        rule(**options)


def test_without_names_every_label_is_a_class():
    assert LabelRule().apply(np.array([[999]], np.uint16)) == 999

"""What the page shows: a picture whose values can be read, a heat map, a sentence instead."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from cat_seg.app import view
from cat_seg.segmentation import Segmentation


def segmentation(height: int = 40, width: int = 60, classes: int = 300) -> Segmentation:
    labels = np.full((height, width), 1)
    labels[:, width // 2 :] = classes - 1
    labels[: height // 4] = -1
    ramp = np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)
    return Segmentation(
        labels=labels,
        scores=ramp,
        classes=["a", '<b onclick="x">&', *map(str, range(2, classes))],
        image=np.full((height, width, 3), 90, np.uint8),
        probability=lambda index: ramp if index == 1 else 0 * ramp,
    )


def attribute(text: str, name: str) -> str:
    found = re.search(rf'{name}="([^"]*)"', text)
    assert found
    return html.unescape(found[1])


def test_the_figure_holds_names_labels_and_probabilities():
    result = segmentation()
    text = view.figure(result, 0.5)
    assert json.loads(attribute(text, "data-names")) == list(result.classes)
    assert "<b" not in text and "&lt;b onclick" in attribute(text, "aria-label").replace(
        "<", "&lt;"
    )
    data = attribute(text, "data-values").partition(",")[2]
    values = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    np.testing.assert_array_equal(256 * values[..., 0] + values[..., 1] - 1, result.labels)
    np.testing.assert_array_equal(values[..., 2], np.rint(100 * result.scores))


def test_large_pictures_are_shown_smaller():
    small = view.shrink(segmentation(900, 4 * view.LONGEST))
    assert small.labels.shape == (225, view.LONGEST) and small.image is not None
    assert small.image.shape == (225, view.LONGEST, 3)
    assert set(np.unique(small.labels)) == {-1, 1, 299}
    result = segmentation()
    assert view.shrink(result) is result
    assert view.shrink(segmentation(1, 3000)).labels.shape == (1, view.LONGEST)


def test_areas_and_the_sentence_count_what_has_no_word():
    rows = view.areas(segmentation())
    assert rows == [['<b onclick="x">&', 37.5], ["299", 37.5], ["none of these", 25.0]]
    assert view.describe(segmentation()).endswith("299 38 %, none of these 25 %.")


def test_the_heat_map_is_bright_where_the_word_is():
    picture, peak = view.heat_map(segmentation(), '<b onclick="x">&')
    light = np.asarray(picture).sum(axis=2)
    assert peak == pytest.approx(1) and light[-1, -1] > 3 * light[0, 0]
    assert view.heat_map(segmentation(), "a")[1] == 0  # nowhere, and no division by zero

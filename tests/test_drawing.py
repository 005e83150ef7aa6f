import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cat_seg.drawing import (
    class_colors,
    draw_segmentation,
    save_label_map,
    save_picture,
    summarize,
)

NAMES = ["cat", "sofa, couch", "bed "]


def test_class_colors_are_distinct_and_stable():
    colors = class_colors(847)
    assert len(np.unique(colors, axis=0)) == 847
    np.testing.assert_array_equal(class_colors(20), colors[:20])
    gaps = np.abs(colors[:20, None].astype(int) - colors[None, :20]).sum(-1)
    assert gaps[~np.eye(20, dtype=bool)].min() > 60


def test_summarize_orders_by_area():
    labels = np.array([[2, 2, 2, 0], [255, 255, -1, -1]])
    assert summarize(labels, NAMES) == [
        {"id": 2, "name": "bed", "pixels": 3, "share": 0.375},
        {"id": 0, "name": "cat", "pixels": 1, "share": 0.125},
    ]


def test_overlay_colours_classes_and_leaves_the_unlabelled():
    image = np.full((480, 600, 3), 100, np.uint8)
    labels = np.zeros((480, 600), np.int64)
    labels[:, 300:] = 255
    picture = np.asarray(draw_segmentation(image, labels, NAMES))
    assert picture.shape[0] == 480 and picture.shape[1] > 600
    color = class_colors(3)[0].astype(int)
    assert np.abs(picture[240, 100] - (100 + color) / 2).max() <= 1
    np.testing.assert_array_equal(picture[240, 500], [100, 100, 100])
    np.testing.assert_array_equal(picture[240, 299], color)  # the outline is solid
    legend = picture[:, 600:].reshape(-1, 3)
    assert (legend == color).all(1).any()


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (1200, 40), (40, 1200)])
def test_overlay_of_any_size_is_legible(size):
    count = 60
    labels = np.arange(size[0] * size[1]).reshape(size) % count
    names = [f"class {i} of some length" for i in range(count)]
    picture = draw_segmentation(np.zeros((*size, 3), np.uint8), labels, names)
    assert max(picture.size) >= 480


@pytest.mark.parametrize(("count", "mode"), [(256, "L"), (257, "I;16")])
def test_label_map_and_names(tmp_path: Path, count, mode):
    names = [f"name {i}" for i in range(count)]
    labels = np.array([[0, count - 1], [count - 1, 7]])
    png, table = save_label_map(tmp_path / "new" / "a.png", labels, names, image="photo.jpg")
    with Image.open(png) as saved:
        assert saved.mode == mode
        np.testing.assert_array_equal(np.asarray(saved), labels)
    contents = json.loads(table.read_text())
    assert contents["image"] == "photo.jpg"
    assert contents["classes"] == names
    assert (contents["height"], contents["width"]) == (2, 2)
    assert contents["present"][0] == {
        "id": count - 1,
        "name": f"name {count - 1}",
        "pixels": 2,
        "share": 0.5,
    }


def test_nothing_is_left_of_a_failed_write(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Image.Image, "save", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_picture(tmp_path / "a.jpg", Image.new("RGB", (2, 2)))
    assert list(tmp_path.iterdir()) == []

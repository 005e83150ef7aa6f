import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from cat_seg import drawing
from cat_seg.drawing import blend, draw_segmentation, save_picture
from cat_seg.palette import name_colors

NAMES = ["cat", "sofa", "bed"]


@pytest.fixture
def halves():
    """A grey picture, left a cat, right nothing."""
    labels = np.zeros((600, 800), np.int64)
    labels[:, 400:] = -1
    return np.full((600, 800, 3), 100, np.uint8), labels


def test_colours_stand_on_the_picture_and_spare_the_unlabelled(halves):
    picture = np.asarray(draw_segmentation(*halves, NAMES, names=False))
    color = name_colors(["cat"])[0].astype(int)
    seen = (100 + color) / 2
    assert np.abs(picture[300, 100] - seen).max() <= 1
    np.testing.assert_array_equal(picture[300, 700], [100, 100, 100])
    assert picture[300, 399:401].min() > 200  # the line
    legend = picture[:, 800:].reshape(-1, 3)
    assert (np.abs(legend - seen).max(1) <= 3).any()  # the swatch is what is seen
    assert (legend == color).all(1).any()  # and its ring the colour
    assert (np.abs(legend.astype(int) - 100).max(1) <= 3).any()  # none of these


def test_opacity_and_outline(halves):
    image, labels = halves
    bare = draw_segmentation(
        image, labels, NAMES, opacity=0, names=False, legend=False, outline=False
    )
    np.testing.assert_array_equal(np.asarray(bare), image)
    full = draw_segmentation(image, labels, NAMES, opacity=1, names=False, legend=False)
    np.testing.assert_array_equal(np.asarray(full)[300, 100], name_colors(["cat"])[0])


def test_original_stands_on_the_left(halves):
    image, labels = halves
    picture = np.asarray(draw_segmentation(image, labels, NAMES, original=True))
    np.testing.assert_array_equal(picture[:, :800], image)


def test_names_are_written_into_regions_that_have_room(halves):
    image, labels = halves
    labels[10:16, 500:506] = 1  # too small for a name
    options = dict(legend=False, outline=False)
    with_names = np.asarray(draw_segmentation(image, labels, NAMES, **options)).astype(int)
    without = np.asarray(draw_segmentation(image, labels, NAMES, names=False, **options))
    rows, columns = np.nonzero((with_names != without).any(2))
    assert len(rows) and columns.max() < 400
    assert abs(rows.mean() - 300) < 150 and abs(columns.mean() - 200) < 60


def test_names_do_not_overlap(monkeypatch):
    boxes = []
    monkeypatch.setattr(drawing, "_draw_pill", lambda picture, box, color: boxes.append(box))
    labels = np.arange(12).repeat(40)[None].repeat(480, 0)
    draw_segmentation(None, labels, ["a rather long name"] * 12)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_enlarged_edges_are_smooth():
    y, x = np.mgrid[:50, :50]
    labels = ((y - 25) ** 2 + (x - 25) ** 2 < 300).astype(int)
    picture = draw_segmentation(None, labels, NAMES, names=False, legend=False, outline=False)
    inside = np.asarray(picture)[..., 0] == np.asarray(picture)[408, 408, 0]
    y, x = np.mgrid[:800, :800]
    radius = np.hypot(y - 407.5, x - 407.5)
    rough = radius[inside].max() - radius[~inside].min()
    assert rough < 16  # less than a pixel of the map, which is 16 here; as blocks it is 20 and more


def test_one_line_runs_along_a_narrow_seam_of_unlabelled_pixels():
    labels = np.zeros((600, 800), np.int64)
    labels[:, 400:] = 1
    labels[:, 395:405] = -1
    picture = np.asarray(
        draw_segmentation(
            np.full((600, 800, 3), 100, np.uint8), labels, NAMES, names=False, legend=False
        )
    )
    white = (picture[300].min(-1) > 200).astype(int)
    assert np.count_nonzero(np.diff(white) == 1) == 1 and white[399:401].any()
    np.testing.assert_array_equal(picture[300, 396], [100, 100, 100])  # it has still no colour


def test_a_seam_belongs_to_the_nearest_class():
    labels = np.array([[0, 0, 0, -1, -1, 1, 1, 1]] * 8, np.int32)
    filled = drawing._without_seams(labels)
    np.testing.assert_array_equal(filled, [[0, 0, 0, 0, 1, 1, 1, 1]] * 8)
    nothing = np.full((8, 8), -1, np.int32)
    assert drawing._without_seams(nothing) is nothing
    assert drawing._without_seams(filled) is filled


def test_seams_of_a_large_map_are_found_on_a_small_one(monkeypatch):
    labels = np.zeros((300, 401), np.int16)
    labels[:, 200:203], labels[:, 203:], labels[:160, 250:] = -1, 1, -1
    exact = drawing._without_seams(labels)
    monkeypatch.setattr(drawing, "_FILLING", 100)
    coarse = drawing._without_seams(labels)
    assert (exact != coarse).mean() < 0.01 and (coarse[:, 198:206] >= 0).all()
    assert (coarse[labels >= 0] == labels[labels >= 0]).all()


def test_a_picture_in_strips_is_that_of_the_whole(halves, monkeypatch):
    image, labels = halves
    labels[100:300, 300:500] = 1
    whole = draw_segmentation(image, labels, NAMES)
    monkeypatch.setattr("cat_seg.label_maps._STRIP", 3_000)
    np.testing.assert_array_equal(draw_segmentation(image, labels, NAMES), whole)


def test_edges_of_a_large_picture_are_smooth_across_strips(monkeypatch):
    y, x = np.mgrid[:300, :900]
    labels = np.hypot(y - 150, x - 450).astype(np.int32) // 60 % 3
    labels[:, 445:450], labels[100:105] = -1, -1
    image = np.full((300, 900, 3), 100, np.uint8)
    whole = draw_segmentation(image, labels, ["a", "b", "c"], original=True)
    monkeypatch.setattr("cat_seg.label_maps._STRIP", 30_000)
    in_strips = draw_segmentation(image, labels, ["a", "b", "c"], original=True)
    np.testing.assert_array_equal(in_strips, whole)


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (1200, 40), (40, 1200)])
def test_any_size_and_many_classes(size):
    count = 90
    labels = np.arange(size[0] * size[1]).reshape(size) % count
    names = [f"class {i} of some length that is rather too long" for i in range(count)]
    picture = draw_segmentation(np.zeros((*size, 3), np.uint8), labels, names, original=True)
    assert max(picture.size) >= 800


def test_a_strip_can_be_drawn_whole():
    # OpenCV dies of an empty mask, and with it the process: so a process of its own.
    code = (
        "import numpy as np; from cat_seg.drawing import draw_segmentation\n"
        "print(draw_segmentation(None, np.zeros((3, 5000), int), ['sea'], legend=False).size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(5000, 3)\n")


def test_nothing_found():
    picture = draw_segmentation(None, np.full((30, 40), -1), [])
    assert picture.height == 600 and picture.width > 800


def test_name_that_no_font_has_is_a_number(monkeypatch):
    monkeypatch.setattr(drawing, "can_draw", lambda name: name != "猫")
    assert drawing._text("猫", 7) == "#7" and drawing._text(" a  cat ", 7) == "a cat"


def test_what_is_no_character_is_not_drawn():
    assert drawing._text("\x1b[31mcat\x07", 3) == "[31mcat"
    assert drawing._text("cat \u0378", 3) == "#3"  # not assigned
    assert drawing._text("\x07", 3) == "#3"


def test_blend_leaves_other_labels():
    image = np.full((1, 3, 3), 50, np.uint8)
    colors = np.array([[250, 150, 50]], np.uint8)
    mixed = blend(image, np.array([[0, 255, -1]]), colors)
    np.testing.assert_array_equal(mixed[0], [[150, 100, 50], [50, 50, 50], [50, 50, 50]])


def test_it_is_fast():
    labels = np.arange(480 * 640).reshape(480, 640) // 7000
    image = np.zeros((480, 640, 3), np.uint8)
    names = [f"class {i}" for i in range(50)]
    draw_segmentation(image, labels, names)
    start = time.process_time()
    draw_segmentation(image, labels, names)
    assert time.process_time() - start < 2  # 0.1 measured


def test_nothing_is_left_of_a_failed_write(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "save", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_picture(tmp_path / "a.jpg", Image.new("RGB", (2, 2)))
    assert list(tmp_path.iterdir()) == []

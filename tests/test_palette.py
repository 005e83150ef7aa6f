import numpy as np
import pytest

from cat_seg import palette
from cat_seg.class_lists import class_names
from cat_seg.palette import is_light, name_colors


def test_a_name_keeps_its_colour():
    (alone,) = name_colors(["armchair"])
    np.testing.assert_array_equal(name_colors([" Armchair "])[0], alone)
    np.testing.assert_array_equal(name_colors(["armchair, easy chair"])[0], alone)
    np.testing.assert_array_equal(name_colors(["lamp", "armchair"])[1], alone)


def test_colours_do_not_depend_on_the_order():
    names = [f"name {i}" for i in range(40)]
    np.testing.assert_array_equal(name_colors(names[::-1]), name_colors(names)[::-1])


def test_names_of_a_picture_are_told_apart():
    colors = name_colors([f"name {i}" for i in range(20)]).astype(int)
    gaps = np.abs(colors[:, None] - colors[None]).sum(-1)
    assert gaps[~np.eye(20, dtype=bool)].min() > 20
    assert len(np.unique(name_colors(["bat, animal", "bat, club"]), axis=0)) == 2


def test_large_vocabularies():
    assert len(np.unique(name_colors(class_names("ade847")), axis=0)) == 847
    assert name_colors([]).shape == (0, 3)
    assert name_colors([str(i) for i in range(1500)]).shape == (1500, 3)


@pytest.mark.parametrize(
    ("color", "light"), [((255, 255, 255), True), ((250, 230, 90), True), ((20, 30, 150), False)]
)
def test_text_by_luminance(color, light):
    assert is_light(color) == light


def test_a_name_that_says_a_colour_gets_a_shade_of_it():
    names = ["red plain circle", "red striped star", "red apple", "blue car", "a yellow cup"]
    red, star, apple, blue, yellow = name_colors(names).astype(int)
    for color in (red, star, apple):
        assert color[0] > 1.5 * max(color[1], color[2])
    assert blue[2] > 1.3 * max(blue[0], blue[1])
    assert min(yellow[0], yellow[1]) > 1.5 * yellow[2]
    assert np.ptp(name_colors(["background"])) == 0  # grey
    assert min(np.abs(red - star).sum(), np.abs(red - apple).sum()) > 20


def test_colors_of_a_data_set_are_computed_when_they_are_asked_for(monkeypatch):
    asked = []
    compute = palette.name_colors
    monkeypatch.setattr(palette, "name_colors", lambda names: asked.append(names) or compute(names))
    colors = palette.NameColors(("sky", "red star"))
    assert len(colors) == 2 and colors == palette.NameColors(("sky", "red star")) and not asked
    assert list(colors) == [tuple(c) for c in compute(["sky", "red star"]).tolist()]
    assert colors[1] == colors[:2][1] and len(asked) == 1

"""What is counted, and what smells of a mistake."""

import numpy as np
import pytest
from PIL import Image

from cat_seg.label_rules import parse_rule
from cat_seg.plugin.data.datasets.census import take_census
from cat_seg.plugin.data.datasets.pairs import Pair


@pytest.fixture
def take(tmp_path, monkeypatch):
    """Counts label maps given as arrays."""
    monkeypatch.setenv("CAT_SEG_CACHE", str(tmp_path / "cache"))

    def _take(*labels, names=("road", "car"), **options):
        pairs = []
        for i, array in enumerate(labels):
            pair = Pair(tmp_path / f"{i}.jpg", tmp_path / f"{i}.png")
            array = np.array(array, np.uint8)
            Image.fromarray(np.zeros((*array.shape[:2], 3), np.uint8)).save(pair.image)
            Image.fromarray(array).save(pair.label)
            pairs.append(pair)
        rule = parse_rule("yard", options, names, list(names).index)
        census = take_census("yard", names, pairs, rule)
        assert take_census("yard", names, pairs, rule) == census  # from the cache
        return census, " ".join(census.smells(rule))

    return _take


def test_everything_is_counted(take):
    census, _ = take([[0, 0, 255]], [[1, 0], [255, 255]], names=("road", "car", "sky"))
    assert (census.images, census.pixels, census.images_of) == (2, [3, 1, 0], [2, 1, 0])
    assert (census.ignored, census.ignored_share, census.missing) == (3, 3 / 7, ["sky"])
    assert (census.smallest, census.largest) == ((1, 3), (2, 2))
    assert census.values == {0: 3, 255: 3, 1: 1}
    assert census.summary() == (
        "yard: 2 images with label maps, 2 of 3 classes occur, 42.9% of pixels ignored"
    )


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([[0, 255]], {}, r"hold 0 and 255 alone.*say so: MAP: {0: 0, 255: 1}"),
        ([[1, 1]], {}, r"one class alone occurs, 'car'; every figure would be 100 %"),
        ([[255, 255]], {}, r"every pixel is ignored"),
        ([[0, 1, 2, 255]], {}, r"a label equals the number of classes, 2: .* OFFSET: 1"),
        ([[[255, 0, 0], [0, 255, 0]]], {}, r'PALETTE: \["#00ff00", "#ff0000"\]'),
        ([[0, 1]], {"names": ("road", "car", "sky")}, r"1 names never occur: sky"),
        ([[0, 1, 255, 255, 255]], {}, r"60% of all pixels are ignored"),
    ],
)
def test_what_smells_is_told(take, labels, options, said):
    import re

    assert re.search(said, take(labels, **options)[1])


def test_good_data_smells_of_nothing(take):
    assert take([[0, 1, 255]])[1] == ""
    assert take([[0, 255]], MAP={0: 0, 255: 1})[1] == ""
    assert take([[0, 1, 2]], OFFSET=1)[1] == ""


def test_blank_images_are_counted(take):
    assert "1 of 2 images have no pixel of any class" in take([[0, 1]], [[255]])[1]


def test_mistakes_are_named_and_the_rest_is_counted(take):
    census, _ = take([[0, 7]], [[0, 1]])
    assert census.unknown == {7: 1} and census.pixels == [2, 1]
    assert len(census.problems) == 1 and "0.png: label 7 is out of range" in census.problems[0]


def test_a_count_that_was_changed_on_disk_is_not_believed(take, tmp_path):
    before, _ = take([[0, 0, 1]])
    (kept,) = (tmp_path / "cache/census").iterdir()
    for spoilt in (kept.read_text().replace('"images": 1', '"images": 2'), "[]", ""):
        kept.write_text(spoilt)
        assert take([[0, 0, 1]])[0] == before

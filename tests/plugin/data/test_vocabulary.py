"""Vocabularies of several data sets united by name."""

import pytest
from detectron2.data import MetadataCatalog

from cat_seg.errors import CATSegError
from cat_seg.plugin.data.vocabulary import training_vocabulary, unite, vocabulary_of


@pytest.mark.parametrize(
    ("vocabularies", "names", "classes"),
    [
        ([["cat", "dog"]], ["cat", "dog"], [[0, 1]]),
        ([["cat", "dog"], ["dog", "cat"]], ["cat", "dog"], [[0, 1], [1, 0]]),
        ([["bed ", "sofa"], ["Sofa", "bed"]], ["bed", "sofa"], [[0, 1], [1, 0]]),
        (  # by any synonym, and the new ones come along
            [["sofa, couch"], ["couch, settee", "cat"], ["settee"]],
            ["sofa, couch, settee", "cat"],
            [[0], [0, 1], [0]],
        ),
        (  # the first name counts more than the others
            [["door", "gate, door"], ["gate", "door"]],
            ["door", "gate, door"],
            [[0, 1], [1, 0]],
        ),
        (  # two classes of one set stay two
            [["bow"], ["bow, knot", "bow, stern"]],
            ["bow, knot", "bow, stern"],
            [[0], [0, 1]],
        ),
        (  # a name that is another class's stays there
            [["sofa", "couch"], ["sofa, couch"]],
            ["sofa", "couch"],
            [[0, 1], [0]],
        ),
    ],
)
def test_classes_are_united_by_name(vocabularies, names, classes):
    assert unite(vocabularies) == (names, classes)


def test_a_list_of_names_is_for_every_data_set(tmp_path):
    (tmp_path / "names.json").write_text('["a", "b"]')
    for name in ("one_set", "other_set"):
        MetadataCatalog.get(name).set(stuff_classes=["b", "c"])
    try:
        sets = ["one_set", "other_set"]
        named = training_vocabulary(str(tmp_path / "names.json"), sets)
        assert named == (["a", "b"], [[0, 1], [0, 1]])
        assert training_vocabulary("", sets) == (["b", "c"], [[0, 1], [0, 1]])
        assert training_vocabulary("", sets[:1]) == (["b", "c"], [[0, 1]])
    finally:
        for name in sets:
            MetadataCatalog.remove(name)


def test_a_data_set_that_is_not_registered_is_named():
    with pytest.raises(CATSegError, match=r"'ade20k_val'.*not registered.*ade20k_150_test"):
        vocabulary_of("", ["ade20k_val"])

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cat_seg import class_lists
from cat_seg.errors import CATSegError
from cat_seg.modeling.clip.text import tokenize
from cat_seg.modeling.prompt_templates import get_templates
from cat_seg.vocabulary import Vocabulary, describe, parse_vocabulary

FILES = Path(__file__).parent / "data" / "words"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("water", [["water"]]),
        (["cat", "sofa, couch", ["pot", "pan"]], [["cat"], ["sofa", "couch"], ["pot", "pan"]]),
        (("a|b", ["c, d"]), [["a", "b"], ["c", "d"]]),
        (["bed ", "traffic  light"], [["bed"], ["traffic light"]]),
        (["salt,pepper"], [["salt,pepper"]]),
        ([["Sofa", "couch", "sofa "]], [["Sofa", "couch"]]),
        (iter(["a", "b"]), [["a"], ["b"]]),
        (np.array(["a", "b"]), [["a"], ["b"]]),
        ({"0": "cat", "10": "dog", "9": ["cow", "ox"]}, [["cat"], ["cow", "ox"], ["dog"]]),
        ({0: "cat", 1: "dog"}, [["cat"], ["dog"]]),
        ({"cat": 1, "dog": 0}, [["dog"], ["cat"]]),
        ({"id2label": {"1": "b", "0": "a"}, "model_type": "x"}, [["a"], ["b"]]),
        ([{"id": 7, "name": "b"}, {"id": 1, "name": "a"}], [["a"], ["b"]]),
        ({"images": [], "categories": [{"id": 1, "name": "a"}]}, [["a"]]),
        ({"names": {0: "a", 1: "b"}, "path": "x"}, [["a"], ["b"]]),
    ],
)  # fmt: skip
def test_forms_of_words(words, expected):
    assert [list(names) for names in Vocabulary.parse(words).classes] == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("cat, sofa", "may be one class or several.*from_text"),
        ("sofa|couch", "may be one class or several"),
        ([], "is empty"),
        ([""], "Class 0 has the empty name"),
        (["water", ", ", "sky"], "Class 1 has the empty name ', '"),
        ([["a", " "]], "Class 0 has the empty name ' '"),
        ([[]], "at least one name"),
        (["a", False], "Class 1 is False.*quotes"),
        (["a", None], "Class 1 is None"),
        (None, "vocabulary is None"),
        (3, "vocabulary is 3"),
        (b"cat", "vocabulary is b'cat'"),
        ({"a", "b"}, "no order"),
        ({"cat": "dog"}, "expected ids and names"),
        ({"cat": 0, "dog": 0}, "same id"),
        ([{"id": 1}], 'Category 0.*"name"'),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "same id"),
        (["Water", "water"], "Classes 0 and 1 are 'Water' and 'water'"),
        (["fish &amp; chips", "fish & chips"], "Classes 0 and 1"),
        (["caf\u00e9", "x", "cafe\u0301"], "Classes 0 and 2"),
        ([["a", "b"], ["B", "a"]], "Classes 0 and 1"),
        (["very " * 80 + "old", "very " * 80 + "new"], "Classes 0 and 1"),
        (["a", "<end_of_text>"], "Class 1.*marks"),
        (["w\0a"], "no text"),
        (["\ud800"], "no text"),
        (["\u200b"], "shows nothing"),
        (["x" * 1001], "1001 characters"),
    ],
)
def test_what_is_refused_is_named(words, message):
    with pytest.raises(CATSegError, match=message):
        Vocabulary.parse(words)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat, sofa|couch, window", [["cat"], ["sofa", "couch"], ["window"]]),
        ("water,sea,", [["water"], ["sea"]]),
        ("a\nb | c|\r\n\n", [["a"], ["b", "c"]]),
        ('["a", "b, c"]', [["a"], ["b", "c"]]),
        ("['a', 'b']", [["a"], ["b"]]),
    ],
)
def test_syntax_of_the_command_line(text, expected):
    assert [list(names) for names in Vocabulary.from_text(text).classes] == expected


@pytest.mark.parametrize("text", ["", " , ", "|", "cat, Cat", "[1"])
def test_command_lines_that_are_refused(text):
    with pytest.raises(CATSegError):
        Vocabulary.from_text(text)


WATER_AND_SKY = [["water"], ["sky"]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bom.json", WATER_AND_SKY),
        ("coco.json", WATER_AND_SKY),
        ("dict.json", WATER_AND_SKY),
        ("ids.txt", WATER_AND_SKY),
        ("names.csv", WATER_AND_SKY),
        ("trail.json", WATER_AND_SKY),
        ("utf16.json", WATER_AND_SKY),
        ("nospace.txt", [["water", "sea"], ["sky"], ["sand"]]),
        ("cap.json", "'Water' and 'water'"),
        ("comma.json", "Class 1 has the empty name"),
    ],
)
def test_files_are_read_as_a_person_would(name, expected):
    if isinstance(expected, str):
        with pytest.raises(CATSegError, match=rf"{name}: .*{expected}"):
            Vocabulary.read(FILES / name)
    else:
        assert [list(names) for names in Vocabulary.read(FILES / name).classes] == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "# comment\ncat\n\n dog, hound \r\n", [["cat"], ["dog", "hound"]]),
        ("a.txt", "0,water\n1,sky", WATER_AND_SKY),
        ("a.txt", "1 water\n2 sky", WATER_AND_SKY),
        ("a.txt", "1: water\n2: sky\n90: sea", [*WATER_AND_SKY, ["sea"]]),
        ("a.txt", "water,0\nsky,1", WATER_AND_SKY),
        ("a.txt", "2 door car\n4 door car", [["2 door car"], ["4 door car"]]),
        ("a.txt", "- water\n- sky\n", WATER_AND_SKY),
        ("a.txt", '"water",\n"sky"', WATER_AND_SKY),
        ("a.txt", "['water', 'sky']", WATER_AND_SKY),
        ("a.txt", "sofa|couch\n", [["sofa", "couch"]]),
        ("a.txt", "Idx\tRatio\tName\n1\t.2\twater;sea\n2\t.1\tsky\n", [["water", "sea"], ["sky"]]),
        ("a.txt", "name\nlabel\n", [["name"], ["label"]]),
        ("a.csv", "name\nwater\nsky\n", WATER_AND_SKY),
        ("a.csv", 'Id;Name\n1;sky\n0;"water, sea"\n', [["water", "sea"], ["sky"]]),
        ("a.csv", "label,name\n0,water\n1,sky\n", WATER_AND_SKY),
        ("a.csv", "0,water\n1,sky\n", WATER_AND_SKY),
        ("a.yaml", "- water\n- sky\n", WATER_AND_SKY),
        ("a.yaml", "path: x\nnames:\n  0: water\n  1: sky\n", WATER_AND_SKY),
    ],
)  # fmt: skip
def test_kinds_of_files(tmp_path, name, text, expected):
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le"):
        (tmp_path / name).write_bytes(text.encode(encoding))
        read = Vocabulary.read(tmp_path / name)
        assert [list(names) for names in read.classes] == expected, encoding


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"cat, sofa, window", "may be one class or several"),
        ("a.txt", b"3: water\n1: sky", "do not count up"),
        ("a.csv", b"nr,wort\n0,water\n1,sky", 'a column called "name"'),
        ("a.csv", b"id,name\n0,water\n1\n", "row 2"),
        ("a.csv", b"id,name\n0,water\n0,sky\n", "twice"),
        ("a.csv", b"id,name\n0,water\n1,\n", "Class 1 has the empty name"),
        ("a.txt", "h\u00fcgel".encode("latin1"), "save it as UTF-8"),
        ("a.json", b'{"a": 1.5}', "expected ids and names"),
        ("a.json", b'["a"', "not JSON"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.txt", b"x" * 10_001, "a line has more than 10000 characters"),
        ("a.yaml", b"- no\n", "False"),
        ("a.yaml", b"a: [b", "not YAML"),
        ("a.yaml", b"{", "not JSON|not YAML"),
        ("a.safetensors", b"x", "not a vocabulary"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CATSegError, match=rf"(?s){name}: .*({message})"):
        Vocabulary.read(tmp_path / name)


@pytest.mark.parametrize("name", ["none.txt", ".", "x" * 5000, "a\0b"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(CATSegError, match=r"no such file; .*ade150"):
        Vocabulary.read(tmp_path / name)


@pytest.mark.parametrize("name", class_lists.PUBLISHED)
def test_published_lists_mean_what_they_meant(name):
    published = class_lists.class_names(name)
    for read in (Vocabulary.read(name), Vocabulary.parse(published)):
        assert [list(names) for names in read.classes] == parse_vocabulary(published)
        assert parse_vocabulary(read.strings) == parse_vocabulary(published)
        assert len(set(read.names)) == len(read) == len(published)
    if name != "ade847":
        assert read.problems() == []


def test_the_published_meaning_of_a_list():
    assert parse_vocabulary(["bed ", "person, child,  man", "salt,pepper", "salt,pepper"]) == [
        ["bed"],
        ["person", "child", "man"],
        ["salt,pepper"],
        ["salt,pepper"],
    ]
    for wrong, message in [
        ([], "vocabulary is empty"),
        (["cat", " "], "Class 1 of the vocabulary is ' '"),
        (["cat", ", ,"], "Class 1 of the vocabulary is ', ,'"),
        ("cat, dog", "is one string"),
    ]:
        with pytest.raises(CATSegError, match=message):
            parse_vocabulary(wrong)


def test_display_names_are_distinct_and_found_by_any_synonym():
    vocabulary = Vocabulary.parse(["bag", "bag, sack", "sofa, couch", "sack"])
    assert vocabulary.names == ("bag", "bag, sack", "sofa", "sack")
    assert [vocabulary.index(name) for name in ("bag", "bag, sack", "Couch ", "sack")] == [
        0,
        1,
        2,
        3,
    ]
    assert len(vocabulary) == 4
    with pytest.raises(CATSegError, match="did you mean 'sofa'"):
        vocabulary.index("sofas")


def test_what_may_surprise_is_told():
    vocabulary = Vocabulary.parse(
        ["bag", "bag, sack", "water,sea", "very " * 70 + "old"], background="sack"
    )
    told = vocabulary.problems()
    assert len(told) == 4
    assert any("'bag' is a name of classes 0 (bag) and 1 (bag, sack)" in line for line in told)
    assert any("'sack' is a name of classes 1 (bag, sack) and 4 (sack)" in line for line in told)
    assert any("'water,sea' is read as one name" in line for line in told)
    assert any("71 tokens" in line for line in told)
    table = describe(vocabulary).splitlines()
    assert table[2].split() == ["1", "bag", "sack", "1"]
    assert table[5].split() == ["-", "sack", "1"]
    assert [line.removeprefix("Note: ") for line in table[6:]] == told
    assert Vocabulary.parse(["cat"]).problems() == []


def test_a_cut_is_told_exactly_when_it_happens():
    """At the limit, the longest prompt loses the word's last token; one less, and it does not."""
    end = tokenize(["old"])[0, 1].item()
    for words, cut in ((67, False), (68, True)):
        name = "very " * (words - 1) + "old"
        tokens = tokenize([template.format(name) for template in get_templates("imagenet")])
        assert (tokens == end).any(dim=1).all().item() is not cut
        assert bool(Vocabulary.parse([name]).problems()) is cut


def test_background_competes_under_its_own_name():
    vocabulary = Vocabulary.parse(["cat"], background=["wall|walls", "floor"])
    assert vocabulary.background == ("wall, walls", "floor")
    assert vocabulary.names == ("cat",) and len(vocabulary) == 1
    with pytest.raises(CATSegError, match="'cat' and 'Cat'"):
        Vocabulary.parse(["cat"], background=["Cat"])
    assert Vocabulary.parse(vocabulary) is vocabulary
    assert Vocabulary.parse(vocabulary, background=["sky"]).background == ("sky",)


def test_equal_by_words_and_pickled():
    one = Vocabulary.parse(["a, b"])
    other = Vocabulary((("a", "b"),), features=torch.ones(1, 2, 3))
    assert one == other and hash(one) == hash(other) and one != Vocabulary.parse(["a"])
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(AttributeError):
        one.classes = ()


def test_saved_and_loaded(tmp_path):
    features = torch.randn(3, 2, 4)
    words = Vocabulary((("a", "b"), ("c",)), ("wall",), features)
    words.save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["classes"] == [["a", "b"], ["c"]]
    loaded = Vocabulary.load(tmp_path / "a.json")
    assert loaded == words and loaded.features is None
    words.save(tmp_path / "a.safetensors")
    loaded = Vocabulary.load(tmp_path / "a.safetensors")
    assert loaded == words and loaded.features is not None
    torch.testing.assert_close(loaded.features, features, rtol=0, atol=0)
    Vocabulary((("a",),), (), features).save(tmp_path / "wrong.safetensors")
    with pytest.raises(CATSegError, match=r"wrong\.safetensors.*shape \(3, 2, 4\)"):
        Vocabulary.load(tmp_path / "wrong.safetensors")
    with pytest.raises(CATSegError, match=r"ends in \.json or"):
        words.save(tmp_path / "a.txt")

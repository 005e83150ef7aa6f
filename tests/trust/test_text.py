"""YAML and text from strangers: nothing in them runs, nothing in them is endless."""

import os
from pathlib import Path

import pytest

from cat_seg.errors import CATSegError
from cat_seg.trust.text import parse_yaml, read_config, read_json, read_text
from cat_seg.vocabulary import Vocabulary

RUNS = '!!python/object/apply:os.system ["touch ran"]'
LAUGHS = "a0: &a0 [1, 1]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)
)


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("tag", ["object/apply:os.system", "name:os.system", "module:os", "tuple"])
def test_tags_of_python_are_refused(tag):
    with pytest.raises(CATSegError, match=r"python/" + tag):
        parse_yaml(f"OUTPUT_DIR: !!python/{tag} []")


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "a: &a {b: *a}",
        "&a [*a]",
        "[" * 5000,
        "{a: " * 5000,
        "a: " + ":".join(["1"] * 60_000),
        "a: " + "1" * 60_000,
        "!!timestamp x",
        "!!binary é",
        "? [a]\n: b",
        "!!float ''",
        "a: !!set [b]",
    ],
)
def test_what_would_take_for_ever_or_fail_is_told(text):
    with pytest.raises(CATSegError, match=r"not YAML"):
        parse_yaml(text)


def test_the_tag_of_published_configs_is_computed_and_nothing_else():
    tag = "a: !!python/object/apply:eval "
    text = tag + '["[int(x * 0.1 * 384) for x in range(5, 21)]"]'
    assert parse_yaml(text)["a"] == [int(x * 0.1 * 384) for x in range(5, 21)]
    for other in ('["1"]', '["[int(x * 0.1 * f()) for x in range(5, 21)]"]', "[]", "x", "[[1]]"):
        with pytest.raises(CATSegError, match="is not run"):
            parse_yaml(tag + other)


def test_plain_values_and_small_aliases_are_read():
    text = "a: &a {x: 1, y: [yes, 0.5, null]}\nb: *a\nc: {<<: *a, y: 2024-01-02}"
    parsed = parse_yaml(text)
    assert parsed["b"] == {"x": 1, "y": [True, 0.5, None]} and parsed["c"]["x"] == 1
    assert parse_yaml("") is None


def test_a_config_stays_on_this_machine_and_ends():
    Path("http.yaml").write_text("_BASE_: http://localhost:1/base.yaml\n")
    with pytest.raises(CATSegError, match=r"http.yaml: _BASE_ is 'http://.*expected a local file"):
        read_config("http.yaml")
    Path("loop.yaml").write_text("_BASE_: [loop.yaml, loop.yaml]\n")
    with pytest.raises(CATSegError, match=r"loop.yaml: it names more than 50 files"):
        read_config("loop.yaml")
    Path("sub").mkdir()
    Path("sub/base.yaml").write_text(f"OUTPUT_DIR: {RUNS}\n")
    Path("sub/own.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(CATSegError, match=r"base.yaml: not YAML"):
        read_config("sub/own.yaml")


@pytest.mark.parametrize("read", [read_text, read_json, read_config])
def test_what_is_no_file_of_text_is_told_at_once(read):
    os.mkfifo("fifo")
    Path("other.txt").write_bytes(b"caf\xe9")
    for name, problem in {
        "fifo": "no regular file",
        "/dev/zero": "no regular file",
        ".": "directory",
        "none": "No such file",
        "x" * 300: "File name too long",
        "other.txt": "not text in UTF-8",
    }.items():
        with pytest.raises(CATSegError, match=problem):
            read(name)


def test_json_of_any_depth_is_told():
    Path("deep.json").write_text("[" * 200_000)
    with pytest.raises(CATSegError, match=r"deep.json: not JSON"):
        read_json("deep.json")
    with pytest.raises(CATSegError, match=r"deep.json: not JSON"):
        Vocabulary.read("deep.json")


def test_words_in_yaml_run_nothing():
    for content in (f"names: {RUNS}", LAUGHS):
        Path("words.yaml").write_text(content)
        with pytest.raises(CATSegError, match=r"words.yaml: not YAML"):
            Vocabulary.read("words.yaml")
    assert not Path("ran").exists()

"""The synthetic world: the same for everyone, and what is held out stays held out."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from cat_seg.resources import resource
from cat_seg.synthetic.dataset import split_scene, write_dataset
from cat_seg.synthetic.names import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_OBJECTS,
    NAMES,
    OBJECTS,
    PATTERNS,
    SEEN_NAMES,
    SEEN_OBJECTS,
    SHAPES,
    phrase_groups,
    phrases,
)
from cat_seg.synthetic.world import draw_scene


def test_every_word_and_every_pair_of_words_is_seen_in_another_object():
    assert set(SEEN_OBJECTS) | set(HELD_OUT_OBJECTS) == set(OBJECTS)
    assert not set(SEEN_OBJECTS) & set(HELD_OUT_OBJECTS)
    assert len(HELD_OUT_OBJECTS) == len(OBJECTS) // 4
    seen = [set(name.split()) for name in SEEN_OBJECTS]
    for first, second in ((COLOURS, PATTERNS), (COLOURS, SHAPES), (PATTERNS, SHAPES)):
        for pair in ({a, b} for a in first for b in second):
            assert any(pair <= words for words in seen), pair


def test_labels_of_both_vocabularies_agree():
    assert NAMES[: len(SEEN_NAMES)] == SEEN_NAMES
    assert NAMES[len(SEEN_NAMES) :] == HELD_OUT_OBJECTS
    assert len(set(NAMES)) == len(NAMES) <= 255


def test_a_phrase_is_true_of_the_names_that_have_its_words():
    true_of = phrases()
    assert true_of["red star"] == {"red plain star", "red striped star", "red dotted star"}
    assert true_of["grass"] == {"grass"}
    assert len(true_of["dotted object"]) == len(COLOURS) * len(SHAPES)


def test_phrases_of_a_group_are_true_of_everything_or_of_every_object_once():
    names, *words = phrase_groups()
    assert list(names) == list(NAMES)
    for group in words:
        assert sorted(name for said in group.values() for name in said) == sorted(OBJECTS)
    assert [len(group) for group in words[:3]] == [len(SHAPES), len(COLOURS), len(PATTERNS)]


def test_shipped_lists_of_names_are_the_worlds():
    for file, names in (("synthetic", NAMES), ("synthetic_seen", SEEN_NAMES)):
        assert json.loads(resource(f"datasets/{file}.json").read_text()) == list(names)


def test_a_seed_gives_the_same_scene():
    scene, again = (split_scene("train", 3, seed=5) for _ in range(2))
    np.testing.assert_array_equal(scene.image, again.image)
    np.testing.assert_array_equal(scene.labels, again.labels)
    assert scene.caption == again.caption
    assert (scene.image != split_scene("train", 3, seed=6).image).any()
    assert (scene.image != split_scene("train", 4, seed=5).image).any()


def test_training_scenes_never_show_what_is_held_out():
    shown = np.zeros(len(NAMES), bool)
    for index in range(60):
        scene = split_scene("train", index, seed=0)
        shown[np.unique(scene.labels)] = True
        assert not set(scene.names) & set(HELD_OUT_OBJECTS)
    assert not shown[len(SEEN_NAMES) :].any()
    assert shown[: len(SEEN_NAMES)].mean() > 0.8


def test_validation_shows_both_kinds():
    labels = np.concatenate([split_scene("val", i, seed=0).labels.ravel() for i in range(60)])
    shown = np.isin(np.arange(len(NAMES)), labels)
    assert shown[: len(SEEN_NAMES)].mean() > 0.7
    assert shown[len(SEEN_NAMES) :].all()


def test_a_caption_says_what_the_labels_show():
    for index in range(20):
        scene = split_scene("val", index, seed=1)
        pixels = np.bincount(scene.labels.ravel(), minlength=len(NAMES))
        for name in scene.names:
            assert pixels[NAMES.index(name)] > 0 and name in scene.caption
        unsaid = set(NAMES) - set(scene.names)
        assert not any(f"a {name} " in scene.caption + " " for name in unsaid & set(OBJECTS))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_plain_object_has_its_colour(colour):
    rng = np.random.default_rng(0)
    scene = draw_scene(rng, 64, [f"{colour} plain circle"], ["snow"], radius=(24, 26))
    inside = scene.labels == NAMES.index(f"{colour} plain circle")
    red, green, blue = scene.image[inside].astype(float).mean(0)
    strong = {
        channel
        for channel, value in zip("rgb", (red, green, blue), strict=True)
        if value > (min(red, green, blue) + max(red, green, blue)) / 2
    }
    expected = {
        "red": "r",
        "green": "g",
        "blue": "b",
        "yellow": "rg",
        "cyan": "gb",
        "pink": "rb",
    }
    assert strong == set(expected[colour])


def test_write_dataset(tmp_path: Path):
    write_dataset(tmp_path, train=2, val=1)
    assert json.loads((tmp_path / "names_seen.json").read_text()) == list(SEEN_NAMES)
    assert json.loads((tmp_path / "names.json").read_text()) == list(NAMES)
    for split, count in (("train", 2), ("val", 1)):
        captions = json.loads((tmp_path / split / "captions.json").read_text())
        assert len(captions) == count
        for index, file in enumerate(sorted(captions)):
            scene = split_scene(split, index, seed=0)
            image = cv2.imread(str(tmp_path / split / "images" / file))[..., ::-1]
            labels = cv2.imread(str(tmp_path / split / "labels" / file), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(image, scene.image)
            np.testing.assert_array_equal(labels, scene.labels)
            assert captions[file] == scene.caption


def test_every_background_is_drawn():
    rng = np.random.default_rng(0)
    means = [draw_scene(rng, 32, [], [name]).image.mean((0, 1)) for name in BACKGROUNDS]
    assert len(np.unique(np.round(means), axis=0)) == len(BACKGROUNDS)

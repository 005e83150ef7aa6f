"""The steps that train the small model: what they show, and that they learn."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cat_seg.label_rules import NOTHING
from cat_seg.modeling.clip.text import tokenize
from cat_seg.plugin.config import load_config, model_config
from cat_seg.resources import resource
from cat_seg.synthetic import train_encoder, train_masks, train_words
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import (
    BACKGROUNDS,
    HELD_OUT_OBJECTS,
    NAMES,
    SEEN_NAMES,
    phrases,
    wordings,
)

SHIPPED = resource("cat_seg/models/synthetic/model.safetensors")


@pytest.fixture(scope="module")
def clip():
    return train_encoder.build(SHIPPED, seed=0)


def test_what_nobody_could_name_is_not_clear():
    hidden = [split_scene("val", index, seed=3) for index in range(30)]
    shares = [scene.clear.mean() for scene in hidden]
    assert min(shares) < 1 and np.mean(shares) > 0.9
    for scene in hidden:
        assert scene.clear[scene.labels < len(BACKGROUNDS)].all()


def test_no_step_shows_the_mask_of_a_held_out_name():
    for index in range(60):
        task = train_masks.draw_task(0, index)
        said = [train_masks.WORDS[i] for i in task.classes]
        shown = set(task.targets.unique().tolist()) - {NOTHING, train_masks.NO_CLASS}
        assert not {said[i] for i in shown} & set(HELD_OUT_OBJECTS)
        assert len(set(said)) == len(said) > 1
        assert not set(said) & set(HELD_OUT_OBJECTS)


def test_the_encoder_has_of_held_out_names_captions_alone():
    batch = train_encoder.Batches(0, 5, 4)[4]
    assert int(batch.names.max()) < len(SEEN_NAMES)
    assert int(batch.tile_labels.max()) < len(SEEN_NAMES)
    captioned = batch.tile_names >= len(SEEN_NAMES)
    assert captioned.any() and (batch.tile_labels[captioned] == train_encoder.NOTHING).all()
    assert (batch.tile_labels[~captioned] >= len(BACKGROUNDS)).any()


def test_a_phrase_has_the_mask_of_all_that_it_is_true_of():
    found = 0
    for index in range(60):
        task = train_masks.draw_task(0, index)
        said = [train_masks.WORDS[i] for i in task.classes]
        if "star" not in said:
            continue
        rng = np.random.default_rng([0, 7, index])
        _, labels, clear = train_masks._draw_scene(rng, 0, index)
        stars = np.isin(labels, [i for i, name in enumerate(NAMES) if name.endswith("star")])
        mask = task.targets.numpy() == said.index("star")
        assert not (mask & ~(stars & clear)).any()
        found += mask.any() and (mask == (stars & clear)).all()
    assert found > 0


def test_groups_hold_no_held_out_name(clip):
    groups = train_encoder.groups_of(clip)
    names, shapes = groups[0], groups[1]
    held_out = [NAMES.index(name) for name in HELD_OUT_OBJECTS]
    assert (names.true_of[held_out] == train_encoder.NOTHING).all()
    assert names.features.shape[1] == len(SEEN_NAMES)
    assert shapes.features.shape[1] == 4 + len(BACKGROUNDS)
    norms = names.features.norm(dim=-1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)


def test_dense_loss_is_low_where_features_are_the_phrases(clip):
    groups = train_encoder.groups_of(clip)
    names = torch.tensor([[[BACKGROUNDS.index("grass"), NAMES.index("red plain star")]]])
    right = groups[0].features.mean(0)[groups[0].true_of[names]]
    right = F.normalize(right, dim=-1)
    scale = torch.tensor(30.0)
    assert train_encoder.dense_loss(right, names, groups, scale) < train_encoder.dense_loss(
        right.flip(2), names, groups, scale
    )


def test_other_words_come_to_mean_the_same(clip):
    learned = copy.deepcopy(clip).requires_grad_(True)
    said, meant = ["crimson disc", "emerald disc"], ["red circle", "green circle"]
    with torch.no_grad():  # as if it had never met these words
        learned.token_embedding.weight[tokenize(["crimson disc emerald"])[0, 1:4]] = 0
    before = train_words.agreement(learned, clip, said, meant, "a photo of a {}.").detach()
    train_words.train(learned, seed=0, steps=60, learning_rate=2e-3)
    after = train_words.agreement(learned, clip, said, meant, "a photo of a {}.").detach()
    assert (after > before).all() and after.min() > 0.8


def test_wordings_are_of_known_phrases():
    assert "crimson star" in wordings("red star") and "striped red star" in wordings(
        "red striped star"
    )
    assert {"something red", "red", "red thing"} <= set(wordings("red object"))
    assert "crosses" in wordings("cross") and "lawn" in wordings("grass")
    said = [other for phrase in phrases() for other in wordings(phrase)]
    assert not set(said) & set(phrases())


def test_the_yaml_describes_the_same_model():
    of_yaml = model_config(load_config("configs/synthetic.yaml", ["MODEL.WEIGHTS", ""]))
    assert of_yaml == train_masks.CONFIG


@pytest.mark.slow
def test_steps_lower_the_loss(tmp_path):
    model = train_masks.build(None, None)
    task = train_masks.draw_task(0, 0)
    texts = model.predictor.text_features([train_masks.WORDS[i] for i in task.classes])

    def loss() -> float:
        with torch.no_grad():
            logits = model(task.image[None].float(), texts)
        return float(train_masks.loss_of(logits, task.targets[None]))

    before = loss()
    train_masks.train(model, seed=0, steps=4, learning_rate=2e-3, output=tmp_path)
    assert loss() < before
    assert (tmp_path / "model.safetensors").exists()

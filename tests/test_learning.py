"""Words learned from labelled pictures: what comes out, and what it is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cat_seg import CATSeg, CATSegError, Vocabulary
from cat_seg.cli.main import main
from cat_seg.inference import EncodedImage, InferencePlan
from cat_seg.learning import fit, on_crops
from cat_seg.modeling.sliding_window import TileGrid
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES
from docs.tools.learned_words import examples, made_up_names, miou, model_without_the_answer

SCENE = split_scene("val", 0, seed=7)
THING = NAMES.index("pink plain triangle")
MASK = THING == SCENE.labels
WORDS = [*(NAMES[i] for i in np.unique(SCENE.labels) if i != THING), "blick"]


@pytest.fixture(scope="module")
def model() -> CATSeg:
    return model_without_the_answer()


def test_a_made_up_word_is_found_once_a_picture_shows_it(model: CATSeg):
    before = model.predict(SCENE.image, WORDS, threshold=0).mask("blick")
    learned = model.learn(WORDS, [(SCENE.image, {"blick": MASK})])
    after = model.predict(SCENE.image, learned, threshold=0).mask("blick")

    def iou(found: np.ndarray) -> float:
        return float((found & MASK).sum() / (found | MASK).sum())

    assert iou(before) < 0.3 and iou(after) > 0.7
    others = model.vocabulary(WORDS).features[:-1]
    torch.testing.assert_close(learned.features[:-1], others, rtol=0, atol=0)
    torch.testing.assert_close(learned.features.norm(dim=-1), torch.ones(len(WORDS), 8))


def test_a_share_of_nothing_is_the_word_alone(model: CATSeg):
    learned = model.learn(WORDS, [(SCENE.image, {"blick": MASK})], share=0)
    torch.testing.assert_close(learned.features, model.vocabulary(WORDS).features)


def encoded(features: torch.Tensor, grid: TileGrid | None, seen: tuple[int, int]) -> EncodedImage:
    canvas = (seen[0] + -seen[0] % 8, seen[1] + -seen[1] % 8)
    return EncodedImage(features, (), seen, canvas, InferencePlan(sliding_window=grid))


def test_inside_it_is_ahead_of_the_best_word_and_outside_like_the_mean_one():
    mask = torch.zeros(8, 8)
    mask[2:5, 3:6] = 1
    thing, ground = F.normalize(torch.randn(2, 256), dim=-1)
    noise = F.normalize(torch.randn(1, 256, 8, 8), dim=1)
    at = torch.where(mask.bool(), thing[:, None, None], ground[:, None, None])
    x = F.normalize(at + 0.3 * noise, dim=1)
    known = F.normalize(torch.randn(6, 256) + 0.3 * ground + 0.2 * thing, dim=-1)
    vector = fit([(encoded(x, None, (8, 8)), mask)], known)
    assert vector.norm() == pytest.approx(1, abs=1e-5)
    ahead = torch.einsum("dhw,d->hw", x[0], vector)
    words = torch.einsum("dhw,kd->khw", x[0], known)
    inside = mask.bool()
    assert ahead[inside].mean() > words.amax(0)[inside].mean()
    assert ahead[~inside].mean() == pytest.approx(words[:, ~inside].mean().item(), abs=0.03)


def test_masks_follow_the_tiles_and_the_padding():
    mask = torch.zeros(6, 6)
    mask[:, :3] = 1
    tiles = TileGrid(kernel=8, overlap=0.5, resolution=12)
    maps = on_crops(mask, encoded(torch.zeros(5, 4, 2, 2), tiles, (12, 12)), (2, 2))
    assert maps.shape == (5, 2, 2)
    torch.testing.assert_close(maps[0], torch.tensor([[1.0, 0.5]] * 2))  # columns 0 to 7 of 12
    torch.testing.assert_close(maps[-1], torch.tensor([[1.0, 0.0]] * 2))  # the whole picture
    padded = on_crops(torch.ones(16, 16), encoded(torch.zeros(1, 4, 2, 2), None, (12, 12)), (2, 2))
    torch.testing.assert_close(padded, torch.tensor([[[1.0, 0.5], [0.5, 0.25]]]))


@pytest.mark.parametrize(
    ("words", "shown", "share", "told"),
    [
        (WORDS, [], 1.0, "nothing to learn from"),
        (WORDS, [(SCENE.image, {"wug": MASK})], 1.0, "'wug' is not in the vocabulary"),
        (WORDS, [(SCENE.image, {"blick": MASK[1:]})], 1.0, "128 x 128 pixels"),
        (WORDS, [(SCENE.image, {"blick": MASK / 2})], 1.0, "expected bool"),
        (WORDS, [(SCENE.image, {"blick": MASK & False})], 1.0, "marks no pixel"),
        (WORDS, [(SCENE.image, {"blick": MASK})], 2.0, "share is 2.0"),
    ],
)
def test_mistakes_are_told(model: CATSeg, words, shown, share: float, told: str):
    with pytest.raises(CATSegError, match=told):
        model.learn(words, shown, share=share)


def test_the_command_writes_what_predict_reads(tmp_path: Path, capsys):
    picture, mask = tmp_path / "scene.png", tmp_path / "mask.png"
    Image.fromarray(SCENE.image).save(picture)
    Image.fromarray(MASK.astype(np.uint8) * 255).save(mask)
    file = tmp_path / "blick.safetensors"
    line = ["learn", "--words", ", ".join(WORDS), "--device", "cpu", "-o", str(file)]
    assert main([*line, "--example", "blick", str(picture), str(mask)]) == 0
    assert f"blick of {len(WORDS)} words, pictures: 1" in capsys.readouterr().out
    found = Vocabulary.load(file)
    model = CATSeg.from_pretrained("synthetic", "cpu")
    expected = model.learn(WORDS, [(SCENE.image, {"blick": MASK})])
    torch.testing.assert_close(found.features, expected.features)

    result = model.predict(SCENE.image, found, threshold=0)  # and of a label map
    label_map = result.save(tmp_path, "labels")[1]
    line[-1] = str(tmp_path / "again.safetensors")
    assert main([*line, "--example", "blick", str(picture), str(label_map)]) == 0
    again = Vocabulary.load(line[-1])
    expected = model.learn(WORDS, [(SCENE.image, {"blick": result.mask("blick")})])
    torch.testing.assert_close(again.features, expected.features)
    line[-1] = str(tmp_path / "again.json")
    assert main([*line, "--example", "blick", str(picture), str(mask)]) == 1


@pytest.mark.slow
def test_pictures_teach_made_up_words_and_cost_the_others_nothing(model: CATSeg):
    names = made_up_names()
    unknown, elsewhere = miou(model, model.vocabulary(names), 12)
    for count, gain in ((1, 5), (5, 10)):
        vocabulary = model.learn(names, examples(names, count))
        learned, others = miou(model, vocabulary, 12)
        assert learned > unknown + gain and others > elsewhere - 1

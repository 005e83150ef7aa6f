"""Refinement: the guided filter equals its equations, own functions are hooks, labels follow."""

import numpy as np
import pytest

from cat_seg import CATSeg, CATSegError, Segmentation, registry
from cat_seg.refinement import guided_filter
from cat_seg.synthetic.dataset import split_scene
from cat_seg.synthetic.names import NAMES as ALL


def segmentation(maps: np.ndarray, threshold: float = 0.0) -> Segmentation:
    rng = np.random.default_rng(0)
    best, scores = maps.argmax(0), maps.max(0)
    return Segmentation(
        labels=np.where(scores < threshold, -1, best),
        scores=scores,
        classes=[f"class {i}" for i in range(len(maps))],
        image=rng.integers(0, 256, (*maps.shape[1:], 3), dtype=np.uint8),
        probability=lambda index: maps[index],
        threshold=threshold,
    )


def test_the_guided_filter_is_its_equations():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    maps = rng.random((2, 9, 11), dtype=np.float32)
    guide, r, epsilon = image.astype(np.float64) / 255, 2, 0.01

    def windows(x: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
        padded = np.pad(x, [(r, r), (r, r), *[(0, 0)] * (x.ndim - 2)], mode="symmetric")
        return [
            (i, j, padded[i : i + 2 * r + 1, j : j + 2 * r + 1].reshape(-1, *x.shape[2:]))
            for i in range(9)
            for j in range(11)
        ]

    for p, found in zip(maps, guided_filter(image, maps, radius=r, epsilon=epsilon), strict=True):
        lines = np.empty((9, 11, 4))
        for (i, j, colours), (_, _, values) in zip(windows(guide), windows(p), strict=True):
            sigma = np.cov(colours.T, bias=True) + epsilon * np.eye(3)
            together = (colours * values[:, None]).mean(0) - colours.mean(0) * values.mean()
            slope = np.linalg.solve(sigma, together)
            lines[i, j] = *slope, values.mean() - slope @ colours.mean(0)
        expected = np.empty((9, 11))
        for i, j, some in windows(lines):
            mean = some.mean(0)
            expected[i, j] = mean[:3] @ guide[i, j] + mean[3]
        np.testing.assert_allclose(found, expected.clip(0, 1), atol=1e-5)


def test_a_function_sees_the_classes_that_are_there_and_decides_anew():
    maps = np.zeros((3, 4, 4), np.float32)
    maps[0], maps[1], maps[2, :2] = 0.4, 0.3, 0.9
    seen = []

    def turned(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
        seen.append((image.shape, probabilities.shape))
        return probabilities[:, ::-1]

    before = segmentation(maps, threshold=0.5)
    assert set(np.unique(before.labels)) == {-1, 2}
    before.threshold = 0.35
    before.labels[2:] = 0
    after = before.refined(turned)
    assert seen == [((4, 4, 3), (2, 4, 4))]  # "class 1" is nowhere
    np.testing.assert_array_equal(after.labels, before.labels[::-1])
    np.testing.assert_allclose(after.probabilities("class 2"), maps[2, ::-1])
    np.testing.assert_allclose(after.probabilities("class 1"), maps[1])
    np.testing.assert_array_equal(before.probabilities("class 2"), maps[2])  # as it was
    assert after.probability_maps().shape == (3, 4, 4)


def test_by_name_or_told_what_is_wrong(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    registry.register("refinement", "same")(lambda image, probabilities: probabilities)
    before = segmentation(np.random.default_rng(0).random((2, 6, 6), dtype=np.float32))
    np.testing.assert_array_equal(before.refined("same").labels, before.labels)
    with pytest.raises(CATSegError, match="did you mean 'same'"):
        before.refined("sam")
    with pytest.raises(CATSegError, match="expected finite probabilities"):
        before.refined(lambda image, probabilities: probabilities[0])
    before.image = None
    with pytest.raises(CATSegError, match="needs the picture"):
        before.refined()


@pytest.mark.slow
def test_the_guided_filter_gains_on_the_synthetic_world():
    model = CATSeg.from_pretrained("synthetic", "cpu")
    gained = []
    for index in range(10):
        scene = split_scene("val", index, seed=3)
        result = model.predict(scene.image, threshold=0)
        truth = np.array([model.default_words.index(name) for name in ALL])[scene.labels]
        gained.append([(r.labels == truth).mean() for r in (result, result.refined())])
    before, after = np.mean(gained, axis=0)
    assert after > before + 0.005


def test_features_of_a_picture_as_a_whole():
    model = CATSeg.from_pretrained("synthetic", "cpu")
    encoded = model.encode(split_scene("val", 0, seed=0).image)
    assert encoded.features.shape == (model.predictor.embed_dim, *model.grid)

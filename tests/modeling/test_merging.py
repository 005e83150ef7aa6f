"""Labels and scores of certified merging against the maps of all classes."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cat_seg.inference import Inference, Maps
from cat_seg.modeling import merging
from cat_seg.modeling.aggregator import ClassLogits
from cat_seg.modeling.merging import Merging
from cat_seg.modeling.sliding_window import TileGrid

ROUNDING = 1e-6


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch):
    """Merge by bounds, however small the case and however many candidates there are."""
    for name, value in (
        ("LEAST_PIXELS", 0),
        ("PIXELS_A_LOGIT", 0),
        ("SHARE", 9),
        ("FIRST_SHARE", 9),
    ):
        monkeypatch.setattr(merging, name, value)


KINDS = ("random", "smooth", "ties", "constant", "left out", "spikes", "low")


def maps_of(
    logits: Tensor,
    size: tuple[int, int],
    tiles: TileGrid | None = None,
    seen: tuple[int, int] = (64, 64),
    classes: list[Any] | None = None,
    T: int | None = None,
) -> Maps:
    """The maps of made-up logits, (crops, T, h, w)."""
    model: Any = SimpleNamespace(device=torch.device("cpu"))
    inference: Any = SimpleNamespace(
        model=model, plan=SimpleNamespace(sliding_window=tiles), _divisor=1
    )
    image: Any = SimpleNamespace(seen=seen, canvas=(64, 64))
    crops = [
        ClassLogits(*crop) for crop in zip(logits, classes or [None] * len(logits), strict=True)
    ]
    return Inference._maps(inference, image, crops, T or logits.shape[1], size)


def random_case(case: int) -> Maps:
    """Random and adversarial logits, crops, sizes and padding."""
    rng = random.Random(case)
    torch.manual_seed(case)
    kind, T = rng.choice(KINDS), rng.randint(1, 9)
    tiles, n, h = None, 1, rng.choice([8, 16, 40])
    if rng.random() < 0.6:
        kernel, overlap = rng.choice([12, 16, 24, 48]), rng.choice([0.0, 0.25, 0.333, 0.5])
        stride = int(kernel * (1 - overlap))
        tiles = TileGrid(kernel, overlap, kernel + stride * rng.randint(0, 2))
        n, h = tiles.count, kernel // rng.choice([2, 3, 4])
    z, classes = torch.randn(n, T, h, h), None
    if kind == "smooth":
        z = F.interpolate(4 * torch.randn(n, T, 3, 3), (h, h), mode="bilinear")
    elif kind == "ties":
        z = z.round()
        z[:, T // 2] = z[:, 0]
    elif kind == "constant":
        z = torch.full_like(z, rng.choice([0.0, -3.0, -100.0, 50.0]))
    elif kind == "spikes":
        z = torch.where(torch.rand_like(z) < 0.02, 20.0, -20.0) + z * 1e-4
    elif kind == "low":
        z = z - rng.choice([80, 100, 150])
    elif kind == "left out":
        kept = rng.randint(1, T)
        classes = [torch.randperm(T)[:kept].sort().values for _ in range(n)]
        z = z[:, :kept]
    seen = (64, 64)
    if tiles is None and rng.random() < 0.5:
        seen = (rng.randint(1, 64), rng.randint(1, 64))
    size = (rng.randint(1, 60), rng.randint(1, 120))
    return maps_of(z.contiguous(), size, tiles, seen, classes, T)


def check(maps: Maps) -> None:
    """No label is worse than the best of all maps, and no score another, beyond rounding."""
    labels, scores = maps.best()
    volume = maps.volume()
    best, first = volume.max(dim=0)
    torch.testing.assert_close(scores, best, atol=ROUNDING, rtol=0)
    chosen = volume.gather(0, labels[None])[0]
    assert (chosen >= best - ROUNDING).all()
    clear = volume.topk(min(2, len(volume)), dim=0).values
    clear = clear[0] > clear[-1] + ROUNDING
    assert torch.equal(labels[clear], first[clear])


def test_equals_all_maps():
    for case in range(300):
        check(random_case(case))


@pytest.mark.slow
def test_equals_all_maps_in_a_thousand_cases():
    for case in range(300, 1300):
        check(random_case(case))


@pytest.mark.parametrize("tiles", [None, TileGrid(48, 0.333, 80)])
def test_equals_all_maps_beyond_the_default_rule(
    tiles: TileGrid | None, monkeypatch: pytest.MonkeyPatch
):
    """Where too many classes may win, all are merged, and nothing is left of the attempt."""
    monkeypatch.undo()
    monkeypatch.setattr(merging, "LEAST_PIXELS", 0)
    torch.manual_seed(0)
    z = torch.randn(tiles.count if tiles else 1, 40, 16, 16)
    check(maps_of(z, (300, 400), tiles))
    z[:, 7, :, :8] += 30  # and where few may, a rectangle each
    z[:, 9, :, 8:] += 30
    check(maps_of(z, (300, 400), tiles))


def test_of_equal_classes_the_first_wins():
    z = F.interpolate(torch.randn(5, 3, 4, 4), (12, 12), mode="bilinear")
    labels, _ = maps_of(z.repeat(1, 2, 1, 1), (300, 400), TileGrid(48, 0.333, 80)).best()
    assert labels.max() < 3
    labels, scores = maps_of(torch.full((1, 4, 8, 8), -200.0), (30, 40)).best()
    assert not labels.any() and torch.equal(scores, torch.tensor(-100.0).sigmoid().expand(30, 40))


def test_bounds_hold_and_few_classes_are_merged():
    """Every map lies within its bounds; where one class stands out, only it is merged."""
    torch.manual_seed(0)
    tiles = TileGrid(48, 0.333, 80)
    z = 3 * F.interpolate(torch.randn(tiles.count, 6, 3, 3), (12, 12), mode="bilinear")
    merging = Merging.of_tiles((12, 12), tiles, (80, 80))
    low, high = merging.bounds(z)
    maps = tiles.merge(F.interpolate(z, (48, 48), mode="bilinear").sigmoid())
    for y, rows in enumerate(merging.rows.places):
        for x, columns in enumerate(merging.columns.places):
            cell = maps[:, rows, columns].flatten(1)
            assert (cell.amin(1) >= low[:, y, x] - ROUNDING).all()
            assert (cell.amax(1) <= high[:, y, x] + ROUNDING).all()
    z[:, 2] += 30
    asked: list[list[int]] = []
    found = maps_of(z, (300, 400), tiles)
    labels, scores = found._blank()

    def logits(some: Tensor) -> list[Tensor]:
        asked.append(some.tolist())
        return [crop.of(some) for crop in found.logits]

    assert found.merging.best(torch.arange(6).split(3), logits, labels, scores)
    assert asked == [[0, 1, 2], [3, 4, 5], [2]] and (labels == 2).all()

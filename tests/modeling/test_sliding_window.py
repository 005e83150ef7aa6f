"""Tiles against fold and unfold."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from cat_seg.modeling.sliding_window import TileGrid, resize


def test_published_grid():
    tiles = TileGrid()
    assert tiles.stride == 256
    assert tiles.corners == [(0, 0), (0, 256), (256, 0), (256, 256)]
    assert tiles.cut(torch.rand(3, 64, 85)).shape == (5, 3, 384, 384)


def test_cutting_and_merging_are_unfold_and_fold():
    tiles = TileGrid(kernel=12, overlap=0.333, resolution=28)
    image = torch.rand(3, 20, 31)
    square = resize(image[None], 28)
    columns = F.unfold(square, 12, stride=8)
    cut = tiles.cut(image)
    assert torch.equal(cut[:-1].flatten(1).T, columns[0])
    assert torch.equal(cut[-1], resize(image[None], 12)[0])
    maps = torch.rand(len(cut), 5, 12, 12)
    count = F.fold(F.unfold(torch.ones(1, 1, 28, 28), 12, stride=8), 28, 12, stride=8)
    folded = F.fold(maps[:-1].flatten(1).T[None], 28, 12, stride=8) / count
    expected = (folded + resize(maps[-1:], 28))[0] / 2
    torch.testing.assert_close(tiles.merge(maps), expected)


@pytest.mark.parametrize("sizes", [(384, 0.333, 600), (384, 0.333, 300), (4, 0.9, 8)])
def test_tiles_that_do_not_cover_are_explained(sizes: tuple[int, float, int]):
    with pytest.raises(ValueError, match="SLIDING_RESOLUTION"):
        TileGrid(*sizes)

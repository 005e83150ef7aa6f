"""Data sets mixed by weight."""

from collections import Counter
from itertools import islice

import pytest

from cat_seg.plugin.data import sampler
from cat_seg.plugin.data.sampler import MixedSampler


def test_sets_are_drawn_by_weight_and_their_images_alike():
    drawn = Counter(islice(MixedSampler([2, 6], [3, 1], seed=0), 8000))
    assert set(drawn) == set(range(8))
    assert sum(drawn[i] for i in (0, 1)) == pytest.approx(6000, abs=200)
    assert abs(drawn[0] - drawn[1]) <= 1
    assert max(drawn[i] for i in range(2, 8)) - min(drawn[i] for i in range(2, 8)) <= 1


def test_the_order_depends_on_the_seed_alone_and_is_shared_by_ranks(monkeypatch):
    whole = [*islice(MixedSampler([4, 9], [1, 1], seed=3), 60)]
    assert whole == [*islice(MixedSampler([4, 9], [1, 1], seed=3), 60)]
    assert whole != [*islice(MixedSampler([4, 9], [1, 1], seed=4), 60)]
    monkeypatch.setattr(sampler.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(sampler.comm, "get_rank", lambda: 1)
    assert [*islice(MixedSampler([4, 9], [1, 1], seed=3), 30)] == whole[1::2]

"""What waits is encoded together, and everyone gets their own answer."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest

from cat_seg import CATSegError, Vocabulary
from cat_seg.serving import Batcher, Full


class Model:
    """Holds its first batch until it is let go; an answer is the picture's brightness."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def encode_batch(self, pictures):
        self.begun.set()
        assert self.go_on.wait(10)
        self.batches.append(len(pictures))
        return [int(picture.max()) for picture in pictures]

    def predict(self, encoded, words, *, threshold=None):
        if encoded == 13:
            raise CATSegError("thirteen")
        return encoded, words


WORDS = Vocabulary.parse(["a", "b"])


def ask(batcher: Batcher, value: int) -> Future:
    return batcher.submit(np.full((2, 2, 3), value, np.uint8), WORDS)


def test_what_waits_is_one_batch_and_one_failure_is_not_the_others():
    model, told = Model(), []
    batcher = Batcher(model, batch=3, on_batch=lambda n, seconds: told.append(n))
    first = ask(batcher, 1)
    assert model.begun.wait(10)
    others = [ask(batcher, value) for value in (2, 13, 4, 5)]
    assert batcher.waiting == 4
    others[3].cancel()
    model.go_on.set()
    batcher.close()  # finishes what waits
    assert [one.result(0)[0] for one in (first, others[0], others[2])] == [1, 2, 4]
    with pytest.raises(CATSegError, match="thirteen"):
        others[1].result(0)
    assert model.batches == told == [1, 3]


def test_no_more_wait_than_may():
    model = Model()
    batcher = Batcher(model, waiting=2)
    running = ask(batcher, 1)
    assert model.begun.wait(10)
    waiting = [ask(batcher, value) for value in (2, 3)]
    with pytest.raises(Full):
        ask(batcher, 4)
    model.go_on.set()
    assert [one.result(10)[0] for one in (running, *waiting)] == [1, 2, 3]
    batcher.close()


def test_what_fails_for_all_is_told_to_all():
    model = Model()
    model.go_on.set()
    model.encode_batch = lambda pictures: 1 // 0
    batcher = Batcher(model)
    with pytest.raises(ZeroDivisionError):
        ask(batcher, 1).result(10)
    batcher.close()

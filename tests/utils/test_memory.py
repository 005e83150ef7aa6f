"""What the process says of its memory."""

import sys

import pytest
import torch

from cat_seg.utils import memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")


@linux
def test_the_peak_is_that_since_the_reset():
    memory.give_back_memory()
    if not memory.reset_peak():
        pytest.skip("the peak cannot be reset here")
    before = memory.resident_bytes()
    torch.ones(64 << 20, dtype=torch.uint8)
    peak = memory.peak_bytes()
    assert before > 0 and peak - before > 60 << 20
    assert memory.reset_peak()
    assert memory.peak_bytes() < peak + (32 << 20)


@linux
def test_freed_memory_is_kept_where_there_is_glibc():
    assert memory.keep_freed_memory() == hasattr(memory._libc(), "mallopt")
    memory.give_back_memory()


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_libc", lambda: None)
    assert not memory.keep_freed_memory()
    memory.give_back_memory()

"""Settings that every test shares."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch; small models lose by more

# isort: split
import cat_seg.plugin  # noqa: F401  (before any import of detectron2)

# isort: split
import logging
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Starts every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def undisturbed_loggers() -> Iterator[None]:
    """Undoes what detectron2's `setup_logger` does, so that later tests see log lines."""
    loggers = [logging.getLogger(name) for name in ("cat_seg", "detectron2", "fvcore")]
    before = [(logger, logger.propagate, logger.level, [*logger.handlers]) for logger in loggers]
    yield
    for logger, propagate, level, handlers in before:
        logger.propagate, logger.handlers[:] = propagate, handlers
        logger.setLevel(level)

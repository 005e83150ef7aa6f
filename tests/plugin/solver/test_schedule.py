"""Learning-rate schedules."""

import pytest
import torch
from detectron2.config import get_cfg
from torch.optim.lr_scheduler import LRScheduler

from cat_seg.plugin.config import add_cat_seg_config
from cat_seg.plugin.solver import build_lr_scheduler
from tests.golden import GOLDEN, load_golden


def schedule(*opts: object) -> LRScheduler:
    cfg = get_cfg()
    add_cat_seg_config(cfg)
    cfg.merge_from_list(list(opts))
    parameter = torch.nn.Parameter(torch.zeros(1))
    return build_lr_scheduler(cfg, torch.optim.SGD([parameter], lr=cfg.SOLVER.BASE_LR))


def rates(scheduler: LRScheduler, iterations: int) -> list[float]:
    found = []
    for _ in range(iterations):
        found += scheduler.get_last_lr()
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_the_published_cosine_schedule(name: str) -> None:
    published = load_golden(name).facts["learning_rates"]
    scheduler = schedule(
        *("SOLVER.LR_SCHEDULER_NAME", published["scheduler"]),
        *("SOLVER.BASE_LR", published["base_lr"], "SOLVER.MAX_ITER", published["max_iter"]),
        *("SOLVER.WARMUP_ITERS", 0, "SOLVER.WARMUP_FACTOR", 1.0),
    )
    for iteration, rate in published["lr"].items():
        scheduler.last_epoch = int(iteration)
        assert scheduler.get_lr() == pytest.approx([rate], rel=1e-9, abs=1e-16)


def test_poly_with_warmup_and_constant_ending() -> None:
    found = rates(
        schedule(
            *("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.BASE_LR", 2.0),
            *("SOLVER.MAX_ITER", 10, "SOLVER.WARMUP_ITERS", 2, "SOLVER.WARMUP_FACTOR", 0.1),
            *("SOLVER.POLY_LR_POWER", 0.9, "SOLVER.POLY_LR_CONSTANT_ENDING", 0.3),
        ),
        10,
    )
    warmup = [0.1, 0.55] + [1.0] * 8
    expected = [2 * w * max((1 - i / 10) ** 0.9, 0.3) for i, w in enumerate(warmup)]
    assert found == pytest.approx(expected)


def test_unknown_warmup_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.WARMUP_METHOD is 'burnin'"):
        schedule("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.WARMUP_METHOD", "burnin")


def test_unknown_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="Zigzag"):
        schedule("SOLVER.LR_SCHEDULER_NAME", "Zigzag")

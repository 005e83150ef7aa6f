"""Evaluators, and the loop that feeds them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from ..utils import comm


class DatasetEvaluator:
    """Takes the inputs and outputs of a model, batch by batch, and measures them in the end."""

    def reset(self) -> None:
        """Start anew."""

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take one batch."""

    def evaluate(self) -> dict[str, Any] | None:
        """Return results, {task: {metric: value}}; other processes than the main one may not."""
        return None


def inference_on_dataset(
    model: Callable[[Any], Any],
    data_loader: Any,
    evaluator: DatasetEvaluator,
) -> dict[str, Any]:
    """Run a model, in evaluation mode, over a loader, and log how long each part takes.

    Args:
        model: takes what the loader gives.
        data_loader: of known length.
        evaluator: what measures.

    Returns:
        What the evaluator returns; an empty dict for nothing.
    """
    logger = logging.getLogger(__name__)
    total = len(data_loader)
    logger.info(f"Start inference on {total} batches")
    evaluator.reset()
    warmup = min(5, total - 1)  # batches whose times do not count
    loading = computing = evaluating = 0.0
    start = mark = time.perf_counter()
    said = -math.inf  # when it was last told how far this is
    with inference_context(model) if isinstance(model, nn.Module) else nullcontext():
        with torch.no_grad():
            for i, inputs in enumerate(data_loader):
                loading += time.perf_counter() - mark
                if i == warmup:
                    start = time.perf_counter()
                    loading = computing = evaluating = 0.0

                mark = time.perf_counter()
                outputs = model(inputs)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                computing += time.perf_counter() - mark

                mark = time.perf_counter()
                evaluator.process(inputs, outputs)
                evaluating += time.perf_counter() - mark

                count = i + 1 - (warmup if i >= warmup else 0)
                each = (time.perf_counter() - start) / count
                mark = time.perf_counter()
                if (i >= warmup * 2 or computing / count > 5) and mark - said >= 5:
                    said = mark
                    logger.info(
                        f"Inference done {i + 1}/{total}. "
                        f"Dataloading: {loading / count:.4f} s/iter. "
                        f"Inference: {computing / count:.4f} s/iter. "
                        f"Eval: {evaluating / count:.4f} s/iter. "
                        f"Total: {each:.4f} s/iter. "
                        f"ETA={timedelta(seconds=int(each * (total - i - 1)))}"
                    )

    elapsed, timed = time.perf_counter() - start, total - warmup
    devices = f"s / iter per device, on {comm.get_world_size()} devices"
    logger.info(
        f"Total inference time: {timedelta(seconds=elapsed)} ({elapsed / timed:.6f} {devices})"
    )
    logger.info(
        f"Total inference pure compute time: {timedelta(seconds=int(computing))} "
        f"({computing / timed:.6f} {devices})"
    )
    return evaluator.evaluate() or {}


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """Keep a model in evaluation mode for a while."""
    training = model.training
    model.eval()
    yield
    model.train(training)

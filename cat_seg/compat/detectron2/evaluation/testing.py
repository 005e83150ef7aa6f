"""Results as lines to copy, and against what is expected."""

from __future__ import annotations

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

from fvcore.common.config import CfgNode

_logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the metrics of each task, without those of single classes, as two lines of CSV."""
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            _logger.info(f"copypaste: {task}={metrics}")
            continue
        overall = {name: value for name, value in metrics.items() if "-" not in name}
        _logger.info(f"copypaste: Task: {task}")
        _logger.info("copypaste: " + ",".join(overall))
        _logger.info("copypaste: " + ",".join(f"{value:.4f}" for value in overall.values()))


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compare with TEST.EXPECTED_RESULTS, rows of task, metric, value, tolerance.

    Returns:
        True; the process ends with code 1 where results differ.
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return True
    for task, metric, value, tolerance in expected:
        actual = results[task].get(metric, math.nan)
        if not abs(actual - value) <= tolerance:  # also where it is NaN
            _logger.error("Result verification failed!")
            _logger.error(f"Expected Results: {expected}")
            _logger.error(f"Actual Results: {pprint.pformat(results)}")
            sys.exit(1)
    _logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"a": {"b": 1}} into {"a/b": 1}, at any depth."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{k}": v for k, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat

"""The averages of MESS: mIoU by domain, beside the published figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from tabulate import tabulate

from cat_seg.plugin.data.datasets.registered import MESS, MESS_DOMAINS, MESS_PUBLISHED

_COMBINED = "paxray_sem_seg_test_"  # four data sets that count as one


def domain_averages(miou: Mapping[str, float]) -> tuple[list[float | None], float | None]:
    """Average over the data sets of each domain, and over all of them.

    Args:
        miou: of registered names, in percent; those that are not of MESS are left out.

    Returns:
        A figure for each of `MESS_DOMAINS`, and that of all data sets; None where there are none.
    """
    grouped: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, value in miou.items():
        if name in MESS:
            one = _COMBINED if name.startswith(_COMBINED) else name
            grouped[MESS[name][1], one].append(value)
    figures = {key: fmean(values) for key, values in grouped.items()}
    by_domain = [
        [value for (domain, _), value in figures.items() if domain == wanted]
        for wanted in MESS_DOMAINS
    ]
    averages = [fmean(values) if values else None for values in by_domain]
    return averages, fmean(figures.values()) if figures else None


def domain_table(miou: Mapping[str, float], model: str = "") -> str:
    """Format the averages, with the published ones of MESS, as a table; "" without any.

    Args:
        miou: see `domain_averages`; by MESS's definition, which is `mIoU_2021` here.
        model: what was evaluated, for the first row.
    """
    averages, mean = domain_averages(miou)
    if mean is None:
        return ""
    missing = len(MESS) - len(set(miou) & set(MESS))
    title = f"{model or 'this model'}" + (f" ({missing} data sets are missing)" if missing else "")
    rows: list[Sequence[object]] = [(title, *averages, mean)]
    rows += [(f"published, {name}", *figures) for name, figures in MESS_PUBLISHED.items()]
    return tabulate(rows, ("", *MESS_DOMAINS, "mean"), tablefmt="pipe", floatfmt=".2f")

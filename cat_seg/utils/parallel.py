"""The same work on many files, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_files(
    function: Callable[[Item], Result], items: Sequence[Item], title: str
) -> list[Result]:
    """Applies `function` to each item, with a progress bar where there is a terminal.

    Threads suffice, because decoding, encoding and NumPy's indexing release the interpreter. An
    error or an interruption drops the work that has not begun.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            results = pool.map(function, items)
            return list(tqdm(results, desc=title, total=len(items), unit="file", disable=None))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

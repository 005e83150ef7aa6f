"""Writes the synthetic world's data set: python -m cat_seg.synthetic.draw --output DIR."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from cat_seg.synthetic.dataset import write_dataset


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=3000, help="scenes to train on")
    parser.add_argument("--val", type=int, default=300, help="scenes to evaluate on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_dataset(options.output, train=options.train, val=options.val, seed=options.seed)


if __name__ == "__main__":
    main()

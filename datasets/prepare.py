"""Prepare datasets by name: python datasets/prepare.py NAME... | all"""

import argparse
import importlib
import sys

from preparation import SPLITS, run_all

NAMES = list(dict.fromkeys(split.preparation for split in SPLITS))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*NAMES, "all"], metavar="NAME")
    names = parser.parse_args().names
    chosen = NAMES if "all" in names else names
    return run_all({name: importlib.import_module(f"prepare_{name}").prepare for name in chosen})


if __name__ == "__main__":
    sys.exit(main())

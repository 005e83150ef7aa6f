"""List the models: published ones, and the small one that ships.

cat-seg models
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from cat_seg.cli.terminal import table
from cat_seg.hub import PublishedModel, list_models


def main(arguments: Sequence[str]) -> int:
    """Print a row a model, or JSON."""
    parser = argparse.ArgumentParser(
        prog="cat-seg models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print all that is known as JSON")
    args = parser.parse_args(arguments)
    models = list_models()
    if args.json:
        rows = [{**dataclasses.asdict(model), "mIoU": model.miou} for model in models]
        print(json.dumps(rows, indent=1))
        return 0
    header = ("name", "year", "encoder", "guidance", "parameters", "A-150", "knows")
    print(table([header, *map(_row, models)]))
    print('\nTo use one: cat-seg predict photo.jpg --words "cat, sofa|couch" --model NAME')
    return 0


def _row(model: PublishedModel) -> tuple[str, ...]:
    figure = model.miou.get("ade20k_150_test_sem_seg")
    return (
        model.name,
        str(model.year),
        model.encoder,
        model.guidance,
        f"{model.parameters / 1e6:.0f} M" if model.parameters else "-",
        f"{figure:.1f}" if figure else "-",
        "photographs" if model.photographs else "its synthetic world",
    )

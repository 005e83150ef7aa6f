"""List the models: published ones, and the small one that ships.

cat-seg models
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from cat_seg.hub import list_models


def main(arguments: Sequence[str]) -> int:
    """Print the table of models, or JSON."""
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
    print(models)
    print('\nTo use one: cat-seg predict photo.jpg --words "cat, sofa|couch" --model NAME')
    print("Any CLIP without training, which is weaker: --model training-free:ViT-B-16:openai")
    return 0

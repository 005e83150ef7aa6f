"""Show how a file of words is understood, and what may surprise.

cat-seg words names.txt
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from cat_seg.utils.text import printable


def main(arguments: Sequence[str]) -> int:
    """Show a vocabulary as a table of classes, or as JSON."""
    from cat_seg.vocabulary import Vocabulary, describe

    parser = argparse.ArgumentParser(
        prog="cat-seg words",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        help="JSON, YAML, CSV, or a class a line; or the name of a published list, such as ade150",
    )
    parser.add_argument(
        "--json", action="store_true", help="print it as JSON, which --words-file reads too"
    )
    args = parser.parse_args(arguments)
    vocabulary = Vocabulary.read(args.file)
    if args.json:
        classes = [list(names) for names in vocabulary.classes]
        background = list(vocabulary.background)
        print(json.dumps({"classes": classes, "background": background}, indent=1))
    else:
        print("\n".join(printable(line) for line in describe(vocabulary).splitlines()))
    return 0

"""Serve a page on which pictures are segmented by words.

cat-seg app                                  # the small model, on this machine alone
cat-seg app --model large-2024 --port 8000
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cat_seg.cli.options import SHIPPED


def main(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="cat-seg app",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        default=SHIPPED,
        metavar="NAME",
        help="what is loaded first: a name of `cat-seg models`, a folder, a checkpoint file, or "
        "owner/repo on the hub",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen; this machine alone if left out, 0.0.0.0 for everybody",
    )
    parser.add_argument("--port", type=int, help="7860 or the next that is free if left out")
    parser.add_argument(
        "--device", default="", help="cuda, mps or cpu; the best there is if left out"
    )
    parser.add_argument("--browser", action="store_true", help="open it in a browser")
    args = parser.parse_args(arguments)
    from cat_seg.app import build, launch

    page = build(args.model, args.device)
    launch(page, host=args.host, port=args.port, inbrowser=args.browser)
    return 0

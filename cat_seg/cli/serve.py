"""Serve segmentations to other programs, over HTTP.

    cat-seg serve                                # the small model, for this machine alone
    cat-seg serve --model large-2024 --port 8000
    curl -F image=@photo.jpg -F words="cat, sofa|couch" http://127.0.0.1:8000/segment

A page at / describes it. SIGTERM and Ctrl-C end it when what waits is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cat_seg.cli.options import add_model_options, load_model
from cat_seg.utils.text import printable


def main(arguments: Sequence[str]) -> int:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(
        prog="cat-seg serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen; this machine alone if left out, 0.0.0.0 for everybody",
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--batch", type=int, default=8, metavar="N", help="pictures encoded together at most"
    )
    parser.add_argument(
        "--waiting", type=int, default=64, metavar="N", help="requests that may wait for the model"
    )
    parser.add_argument("--max-words", type=int, default=1000, metavar="N", help="of a request")
    parser.add_argument(
        "--max-megapixels", type=float, default=50, metavar="N", help="of a picture"
    )
    parser.add_argument("--max-megabytes", type=float, default=50, metavar="N", help="of a request")
    parser.add_argument(
        "--grace",
        type=int,
        default=30,
        metavar="SECONDS",
        help="after a signal, for what runs and waits",
    )
    args = parser.parse_args(arguments)
    from cat_seg.serving import Limits, build, serve

    limits = Limits(
        bytes=int(1e6 * args.max_megabytes),
        pixels=int(1e6 * args.max_megapixels),
        words=args.max_words,
        waiting=args.waiting,
        batch=args.batch,
    )
    app = build(load_model(args), limits)
    print(printable(f"Serving at http://{args.host}:{args.port}"), flush=True)
    serve(app, host=args.host, port=args.port, grace=args.grace)
    return 0

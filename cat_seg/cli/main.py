"""The command cat-seg; a subcommand's module is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

import cat_seg
from cat_seg.cli.terminal import run

# Subcommand -> what it does. Each is a module here, with main(arguments) -> exit code.
COMMANDS = {
    "predict": "segment pictures by words",
    "video": "segment a video, or what a camera sees",
    "app": "serve a page for pictures and words",
    "serve": "answer other programs, over HTTP",
    "label": "label many pictures, on one machine or many",
    "export": "write a model as ONNX or for torch.export",
    "models": "list the models that there are",
    "calibrate": "compute fewer classes of many, with a guarantee",
    "learn": "learn words from a few labelled pictures",
    "words": "show how a file of words is understood",
    "data": "look at data sets, import other formats",
    "evaluate": "evaluate a model on benchmarks",
    "compare": "put evaluations beside each other, as a web page",
    "convert": "convert weights between the released layout and ours",
    "doctor": "show what is installed here, and what is missing",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: of the command line; those of the process if None.

    Returns:
        the exit code: 0, or 1 if something could not be done; 2 (by SystemExit) for wrong usage.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command: str = build_parser().parse_args(arguments[:1] or ["--help"]).command

    def start() -> int:
        module = importlib.import_module(f"cat_seg.cli.{command}")
        code: int = module.main(arguments[1:])
        return code

    return run(f"cat-seg {command}", start)


def build_parser() -> argparse.ArgumentParser:
    """Parse the subcommand's name alone."""
    parser = argparse.ArgumentParser(
        prog="cat-seg",
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="Segment pictures by any list of words.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())
        + "\n\ncat-seg COMMAND --help tells what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cat-seg {cat_seg.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    return parser


if __name__ == "__main__":
    sys.exit(main())

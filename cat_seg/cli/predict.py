"""Segment pictures by words.

    cat-seg predict photo.jpg holiday/ --words "cat, sofa|couch, window" --model large-2024

For each picture this writes NAME_overlay.jpg (classes over the picture, and a legend),
NAME_labels.png (the class of each pixel, with the names inside) and NAME_labels.json. Outputs
mirror the tree of the inputs. What was done before by the same model and words is not done again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from cat_seg import __version__
from cat_seg.cli.ledger import Ledger
from cat_seg.cli.options import (
    FOR_PHOTOGRAPHS,
    SHIPPED,
    SHIPPED_YAML,
    add_model_options,
    add_word_options,
    encode_words,
    load_model,
    parse_words,
)
from cat_seg.cli.terminal import DISK, percent
from cat_seg.errors import CATSegError
from cat_seg.resources import resource, user_path
from cat_seg.utils.text import as_text, printable

if TYPE_CHECKING:  # torch takes seconds, and --help needs none
    from cat_seg.model import CATSeg
    from cat_seg.vocabulary import Vocabulary

_SHOWN_PICTURES = 20  # of more, not each gets a line
_SHOWN_NAMES = 8  # of a picture, largest first
_LONGEST_STEM = 240  # bytes


def main(arguments: Sequence[str]) -> int:
    """Segment the pictures that the command line names."""
    parser = argparse.ArgumentParser(
        prog="cat-seg predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="PICTURE",
        help="picture files, globs, or folders with all that is in them",
    )
    add_options(parser)
    return predict(parser.parse_intermixed_args(arguments))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options but the inputs."""
    add_word_options(parser)
    add_model_options(parser)
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="DIR")
    parser.add_argument(
        "--memory",
        type=int,
        default=0,
        metavar="MB",
        help="stream a vocabulary that would take more; half of what is free if left out",
    )
    parser.add_argument(
        "--refine",
        nargs="?",
        const="guided_filter",
        metavar="NAME",
        help="let masks follow the picture's edges: guided_filter, or what a package registers",
    )
    parser.add_argument(
        "--original", action="store_true", help="put the picture beside its overlay"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="do again what is done; files that cat-seg did not write are left in any case",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a line of JSON for each picture, and everything else to stderr",
    )


class Task(NamedTuple):
    """A picture to segment."""

    path: Path
    output: Path  # stem of its files, relative to the folder of outputs
    job: dict[str, Any]  # what decides the result


def predict(args: argparse.Namespace) -> int:
    """Segment pictures.

    Args:
        args: what `add_options` adds, and `inputs`.

    Returns:
        1 if a picture was left out, else 0.

    Raises:
        CATSegError: if nothing can be done at all.
    """
    words, background = parse_words(args)
    settings = _settings(args, words, background)
    ledger = Ledger(args.output)
    report = Report(args.json)
    todo = []
    addresses = [item for item in args.inputs if "://" in item]
    for item in addresses:
        problem = f"{item} is an address, which is not fetched: download it, and name the file."
        report.left_out(Path(item), CATSegError(problem))
    for path, output in _pictures([item for item in args.inputs if item not in addresses]):
        if not os.path.isfile(path):
            report.left_out(path, _what_is_wrong(path))
            continue
        task = Task(path, output, {"settings": settings, "picture": _fingerprint(path)})
        result = None if args.overwrite else ledger.result(output, task.job)
        if result is None:
            todo.append(task)
        else:
            report.was_done(path, result)
    if todo:
        with ledger, _warnings_above_the_bar():  # whether it can be written shows first
            model = load_model(args)
            if args.memory:
                model.plan = replace(model.plan, memory=args.memory * 1_000_000)
            report.photographs = model.card["photographs"]
            vocabulary = encode_words(model, words, background)
            for task in report.progress(todo):
                try:
                    result = _segment(model, vocabulary, task, ledger, args)
                except MemoryError:
                    problem = f"{task.path}: needs more memory than there is; scale it down."
                    report.left_out(task.path, CATSegError(problem))
                except CATSegError as error:
                    report.left_out(task.path, error)
                    if isinstance(error.__cause__, OSError) and error.__cause__.errno in DISK:
                        report.problems.append("All that comes after it, which was not tried.")
                        break
                else:
                    report.is_done(task.path, result, line=len(todo) <= _SHOWN_PICTURES)
    report.summarize(args.output)
    return 1 if report.problems else 0


class Report:
    """What is told: of each picture a line (JSON, or what is in it), and a summary.

    Attributes:
        problems: why pictures were left out.
        photographs: whether the model knows them.
    """

    def __init__(self, as_json: bool) -> None:
        self.problems: list[str] = []
        self.photographs = True
        self._json = as_json
        self._done = self._skipped = 0
        self._notes: dict[str, list[str]] = defaultdict(list)  # note -> pictures
        self._start = 0.0

    def progress(self, todo: Sequence[Task]) -> Iterator[Task]:
        """Go through what is to be done, with a bar on a terminal."""
        from tqdm import tqdm

        self._start = time.perf_counter()
        bar = tqdm(todo, unit="picture", disable=None)
        for task in bar:
            bar.set_postfix_str(printable(task.path.name))
            yield task

    def is_done(self, path: Path, result: dict[str, Any], *, line: bool) -> None:
        """Tell the result of a picture; without JSON, only if `line`."""
        self._done += 1
        self._tell(path, result, line)

    def was_done(self, path: Path, result: dict[str, Any]) -> None:
        """Tell the result of a picture that was done before."""
        self._skipped += 1
        self._tell(path, result, line=False)

    def left_out(self, path: Path, error: CATSegError) -> None:
        """Tell that a picture could not be done."""
        self.problems.append(str(error))
        if self._json:
            _say(json.dumps({"image": as_text(path), "error": str(error)}), sys.stdout)

    def _tell(self, path: Path, result: dict[str, Any], line: bool) -> None:
        for note in result["notes"]:
            self._notes[note].append(path.name)
        if self._json:
            _say(json.dumps({"image": as_text(path), **result}), sys.stdout)
        elif line:
            shares = [*result["areas"].items()]
            more = [f"{len(shares) - _SHOWN_NAMES} more"] if len(shares) > _SHOWN_NAMES else []
            if result["unlabelled"]:
                more.append(f"none of these {percent(result['unlabelled'])}")
            found = [f"{name} {percent(share)}" for name, share in shares[:_SHOWN_NAMES]]
            _say(printable(f"{path}: {', '.join([*found, *more])}"), sys.stdout)

    def summarize(self, output: Path) -> None:
        """Tell how many were done, what is remarkable, and what was left out."""
        out = sys.stderr if self._json else sys.stdout
        where = printable(output)
        if self._done:
            seconds = time.perf_counter() - self._start
            pictures = "1 picture" if self._done == 1 else f"{self._done} pictures"
            each = f"{seconds / self._done:.2f} s each"
            print(f"{pictures} in {seconds:.1f} s ({each}): {where}", file=out)
        if self._skipped:
            print(f"{self._skipped} done before (--overwrite does them again): {where}", file=out)
        if not (self._done or self._skipped or self.problems):
            print("Nothing to do: all that is there was written by cat-seg.", file=out)
        for note, names in self._notes.items():
            which = ", ".join(map(printable, names[:5])) + (", ..." if len(names) > 5 else "")
            some = len(names) < self._done + self._skipped
            print(f"{printable(note)} ({which})" if some else printable(note), file=out)
        if not self.photographs and not self._notes:
            print(
                "The model knows its synthetic world and no photographs; for those, "
                f"--model {FOR_PHOTOGRAPHS}.",
                file=out,
            )
        for problem in self.problems:
            print(f"Left out: {printable(problem)}", file=sys.stderr)


def _segment(
    model: CATSeg, vocabulary: Vocabulary, task: Task, ledger: Ledger, args: argparse.Namespace
) -> dict[str, Any]:
    """Segment one picture, and write what comes of it.

    Returns:
        what there is to tell of it.

    Raises:
        CATSegError: if it cannot be read, or its files cannot be written.
    """
    from cat_seg.drawing import save_picture

    result = model.predict(task.path, vocabulary, threshold=args.threshold, refine=args.refine)
    result.path = as_text(task.path)  # which can be written in UTF-8
    stem = args.output / task.output
    label_map = "_labels.png" if len(result.classes) <= 65535 else "_labels.tif"
    endings = ("_overlay.jpg", label_map, "_labels.json")
    files = [stem.with_name(stem.name + ending) for ending in endings]
    about = {
        "files": [as_text(file) for file in files],
        "areas": {name: round(share, 4) for name, share in result.areas().items()},
        "unlabelled": round(result.unlabelled, 4),
        "notes": list(result.notes),
    }
    try:
        ledger.begin(task.output, files)
        result.save(stem.parent, stem.name)
        if args.original:
            save_picture(files[0], result.plot(original=True))
        ledger.finish(task.output, files, task.job, about)
    except OSError as error:
        raise CATSegError(f"{stem}: cannot be written ({error.strerror or error}).") from error
    return about


def _pictures(inputs: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    """Find pictures and the stems of their outputs, without what cat-seg itself wrote."""
    from cat_seg.images import find_inputs

    named = {user_path(item) for item in inputs}
    ledgers: dict[Path, Ledger | None] = {}
    for path, output in find_inputs(inputs):
        folders = () if path in named else path.absolute().parents
        for folder in folders:
            if folder not in ledgers:
                try:
                    ledgers[folder] = Ledger(folder)
                except CATSegError:  # not its folder
                    ledgers[folder] = None
        if not any(ledger.wrote(path.absolute()) for f in folders if (ledger := ledgers[f])):
            yield path, _within_limits(output)


def _within_limits(output: Path) -> Path:
    """Shorten a stem so that endings may be added; file systems take names of 255 bytes."""
    if len(os.fsencode(output.name)) <= _LONGEST_STEM:
        return output
    digest = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:16]
    start = os.fsencode(output.name)[: _LONGEST_STEM - 17].decode(errors="ignore")
    return output.with_name(f"{start}-{digest}")


def _what_is_wrong(path: Path) -> CATSegError:
    """Say why something that is no file cannot be read."""
    from cat_seg.images import read_image

    try:
        read_image(path)
    except CATSegError as error:
        return error
    return CATSegError(f"{path} was no file a moment ago; start again.")


def _settings(args: argparse.Namespace, words: Vocabulary | None, background: Sequence[str]) -> str:
    """Digest what decides the results but for the pictures: version, model, words, options."""
    if args.config_file or args.opts:
        from cat_seg import plugin

        cfg = plugin.load_config(args.config_file or SHIPPED_YAML, args.opts, args.device).clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = ""
        model, place = cfg.dump(), Path(cfg.MODEL.WEIGHTS)
    else:
        model = args.model or SHIPPED
        place = resource(f"cat_seg/models/{SHIPPED}") if model == SHIPPED else Path(model)
    place = user_path(place)
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    content = [
        *(__version__, model, [_fingerprint(file) for file in files if file.is_file()]),
        *([words.classes, words.background, _learned(words)] if words else [None, background]),
        *(args.threshold, args.original, args.refine),
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _learned(words: Vocabulary) -> str:
    """Digest the features that words bring, as those of `cat-seg learn`; "" if they bring none."""
    if words.features is None:
        return ""
    return hashlib.sha256(words.features.contiguous().numpy().tobytes()).hexdigest()


def _fingerprint(path: Path) -> list[Any]:
    """Describe a file so that a change of it shows, without reading it."""
    status = path.stat()
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def _say(text: str, file: TextIO) -> None:
    """Print a line above the progress bar, at once."""
    from tqdm import tqdm

    tqdm.write(text, file=file)
    file.flush()


@contextlib.contextmanager
def _warnings_above_the_bar() -> Iterator[None]:
    """Show the library's warnings without breaking the progress bar."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _say(printable(record.getMessage()), sys.stderr)

    logger, handler = logging.getLogger("cat_seg"), Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)

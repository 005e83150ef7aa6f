"""Segment images by any list of words.

    python demo/demo.py --input photo.jpg --vocabulary "cat, sofa, window"

For each image this writes NAME_overlay.jpg, the classes drawn over the image with a legend, and
NAME_labels.png, the class of each pixel, with its names in NAME_labels.json. Outputs of a folder
mirror its subfolders.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from cat_seg import CATSeg
from cat_seg.drawing import draw_segmentation, save_picture
from cat_seg.errors import CATSegError
from cat_seg.images import find_inputs
from cat_seg.segmentation import save_label_map
from cat_seg.utils.memory import keep_freed_memory
from cat_seg.vocabulary import Vocabulary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        The exit code: 1 if an image could not be read, or nothing could be done at all.
    """
    keep_freed_memory()
    args = build_parser().parse_args(arguments)
    try:
        names = vocabulary_of(args)
        make_folder(args.output)
        model = build_model(args)
        vocabulary = model.vocabulary(names or list(model.default_words))
    except (ValueError, OSError) as error:
        print(f"demo.py: {error}", file=sys.stderr)
        return 1
    images = find_inputs(args.input)
    problems: list[str] = []
    start = time.perf_counter()
    bar = tqdm(images, unit="image", disable=None)
    for path, name in bar:
        bar.set_postfix_str(path.name)
        try:
            segment(model, vocabulary, path, args.output / name)
        except ValueError as error:
            problems.append(str(error))
    seconds = time.perf_counter() - start
    if done := len(images) - len(problems):
        plural = "s" if done > 1 else ""
        print(
            f"{done} image{plural} in {seconds:.1f} s ({seconds / done:.2f} s each): {args.output}"
        )
    for problem in problems:
        print(f"Left out: {problem}", file=sys.stderr)
    return 1 if problems else 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="images, globs or folders with all that is in them",
    )
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--vocabulary",
        metavar="WORDS",
        help='classes separated by commas, synonyms of one class by "|": "sofa|couch, window"; '
        "the config's vocabulary if left out",
    )
    words.add_argument(
        "--vocabulary-file",
        type=Path,
        metavar="FILE",
        help="a file of them: JSON, YAML, CSV, or one class a line with synonyms separated by "
        "commas; or the name of a published list, such as ade150",
    )
    parser.add_argument("--output", type=Path, default=Path("output"), metavar="DIR")
    parser.add_argument("--config-file", default="", metavar="FILE")
    parser.add_argument(
        "--device", default="", help="cuda, mps or cpu; the best there is if left out"
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes to the config, such as MODEL.WEIGHTS path; the last option",
    )
    return parser


def vocabulary_of(args: argparse.Namespace) -> list[str] | None:
    """The class names that the command line asks for, or None."""
    if args.vocabulary is not None:
        try:
            return Vocabulary.from_text(args.vocabulary).strings
        except CATSegError as error:
            raise CATSegError(f"--vocabulary: {error}") from error
    if args.vocabulary_file is not None:
        return Vocabulary.read(args.vocabulary_file).strings
    return None


def make_folder(path: Path) -> None:
    """Make the folder of the outputs, if it is not there.

    Raises:
        ValueError: if that cannot be done.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--output {path}: {error.strerror}; expected a folder, there or to be made."
        ) from error


def build_model(args: argparse.Namespace) -> CATSeg:
    """The small model that ships, or that of a config."""
    if not args.config_file and not args.opts:
        return CATSeg.from_pretrained("synthetic", device=args.device)
    from cat_seg.plugin.config import DEFAULT_CONFIG
    from cat_seg.plugin.meta_arch import load_model

    return load_model(args.config_file or DEFAULT_CONFIG, args.opts, args.device)


def segment(model: CATSeg, vocabulary: Vocabulary, path: Path, output: Path) -> None:
    """Segment one image, and write what comes of it under the stem `output`."""
    result = model.predict(path, vocabulary)
    assert result.image is not None
    picture = draw_segmentation(result.image, result.labels, result.classes)
    save_picture(output.with_name(f"{output.name}_overlay.jpg"), picture)
    target = output.with_name(f"{output.name}_labels.png")
    save_label_map(target, result.labels, result.classes, image=str(path))
    for note in result.notes:
        print(f"{path}: {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

"""Options that several commands share: the words, and the model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cat_seg.errors import CATSegError

if TYPE_CHECKING:  # torch takes seconds, and --help needs none
    from cat_seg.model import CATSeg
    from cat_seg.vocabulary import Vocabulary

SHIPPED = "synthetic"  # the model that is taken if none is named
SHIPPED_YAML = f"configs/{SHIPPED}.yaml"
FOR_PHOTOGRAPHS = "large-2024"  # the one to advise


def add_word_options(parser: argparse.ArgumentParser, *, threshold: bool = True) -> None:
    """Add what `parse_words` reads, and the threshold unless it is not wanted."""
    words = parser.add_mutually_exclusive_group()
    words.add_argument(
        "--words",
        "--vocabulary",
        metavar="WORDS",
        help='classes separated by commas, synonyms of one class by "|": "sofa|couch, window"; '
        "those that the model brings if left out",
    )
    words.add_argument(
        "--words-file",
        "--vocabulary-file",
        metavar="FILE",
        help="a file of them (`cat-seg words FILE` shows how it is understood), or the name of a "
        "published list, such as ade150",
    )
    parser.add_argument(
        "--background",
        metavar="WORDS",
        help='words that compete for pixels and are reported as background: "wall, floor"',
    )
    if not threshold:
        return
    parser.add_argument(
        "--threshold",
        type=_probability,
        metavar="P",
        help="leave pixels whose best score is lower without class; 0 to 1, the model's own if "
        "left out",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what `load_model` reads."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--model",
        metavar="NAME",
        help="a name of `cat-seg models`, a folder, a checkpoint file, or owner/repo on the hub; "
        "training-free:CLIP for any CLIP without training, which is weaker; the small one that "
        "ships if left out, which knows no photographs",
    )
    model.add_argument(
        "--config-file", metavar="FILE", help="a model by its YAML, with --opts MODEL.WEIGHTS PATH"
    )
    parser.add_argument(
        "--opts",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="changes to the YAML",
    )
    parser.add_argument(
        "--device", default="", help="cuda, mps or cpu; the best there is if left out"
    )


def load_model(args: argparse.Namespace) -> CATSeg:
    """Build the model that the command line names, with its weights, as fast as it is exact.

    Raises:
        CATSegError: if there is none, or it cannot be had.
    """
    import torch

    from cat_seg.utils.memory import keep_freed_memory

    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # exact convolutions on NVIDIA cards, too
    if args.opts and args.model:
        raise CATSegError("--opts change a YAML: name it by --config-file instead of --model.")
    if args.config_file or args.opts:
        from cat_seg import plugin

        return plugin.load_model(args.config_file or SHIPPED_YAML, args.opts, args.device)
    from cat_seg.model import CATSeg

    return CATSeg.from_pretrained(args.model or SHIPPED, args.device)


def parse_words(args: argparse.Namespace) -> tuple[Vocabulary | None, list[str]]:
    """Parse the words, None where the model's are to be taken, and those of the background.

    Raises:
        CATSegError: if they cannot be understood; the message names the option.
    """
    from cat_seg.vocabulary import Vocabulary

    background: list[str] = []
    option = "--background"
    try:
        if args.background is not None:
            background = Vocabulary.from_text(args.background).strings
        option = "--words"
        if args.words is not None:
            return Vocabulary.from_text(args.words, background=background or ()), background
        option = "--words-file"
        if args.words_file is not None:
            return Vocabulary.read(args.words_file, background=background or ()), background
    except CATSegError as error:
        raise CATSegError(f"{option}: {error}") from error
    return None, background


def encode_words(model: CATSeg, words: Vocabulary | None, background: Sequence[str]) -> Vocabulary:
    """Encode what `parse_words` returned for a model.

    Raises:
        CATSegError: if there are no words, and the model brings none.
    """
    if words is not None:
        return model.vocabulary(words)
    if not model.default_words:
        raise CATSegError('This model brings no words: name them, as in --words "cat, sofa|couch".')
    return model.vocabulary(list(model.default_words), background=list(background))


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a probability, from 0 to 1")
    return value

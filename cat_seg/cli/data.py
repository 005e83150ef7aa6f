"""Look at data sets, and turn other formats into label maps.

cat-seg data check --config-file my.yaml --html page.html
cat-seg data check --images DIR --labels DIR --classes names.json
cat-seg data import coco-panoptic panoptic_val2017.json --output DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_seg.errors import CATSegError
from cat_seg.utils.text import printable

FORMATS = (
    *("coco-panoptic", "coco-instances", "labelme", "voc", "cityscapes"),
    *("supervisely", "label-studio"),
)

if TYPE_CHECKING:
    from cat_seg.plugin.data.datasets.page import DataPage


def main(arguments: Sequence[str]) -> int:
    """Check or import; 1 if something is wrong with the data."""
    args = build_parser().parse_args(arguments)
    code: int = args.run(args)
    return code


def check(args: argparse.Namespace) -> int:
    """Print a page a data set, and write them as HTML if that is asked for."""
    from cat_seg.plugin.data.datasets.page import write_page

    pages = _pages(args)
    for page in pages:
        for line in page.text().splitlines():
            print(printable(line))
        print()
    if args.html:
        write_page(Path(args.html), pages)
        print(f"Pictures: {printable(str(Path(args.html).absolute()))}")
    return 1 if any(page.census.problems for page in pages) else 0


def import_(args: argparse.Namespace) -> int:
    """Turn annotations into label maps, and print the entry that goes with them."""
    from cat_seg.plugin.data.imports import import_labels
    from cat_seg.vocabulary import Vocabulary

    names = Vocabulary.read(args.classes).strings if args.classes else []
    masks = Path(args.masks) if args.masks else None
    summary, entry = import_labels(
        args.format, Path(args.source), Path(args.output), masks=masks, names=names
    )
    for line in str(summary).splitlines():
        print(printable(line))
    print("\nFor DATASETS.FOLDERS, with the folder of your images:")
    entry = {"NAME": Path(args.output).name, "IMAGES": "...", **entry}
    pairs = (f"{key}: {json.dumps(value)}" for key, value in entry.items())
    print(f"  - {{{', '.join(pairs)}}}")
    return 1 if summary.wrong else 0


def _pages(args: argparse.Namespace) -> list[DataPage]:
    """Count what the command line names."""
    # isort: split
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from cat_seg.plugin.config import load_config
    from cat_seg.plugin.data.datasets.census import take_census
    from cat_seg.plugin.data.datasets.folders import FolderData
    from cat_seg.plugin.data.datasets.page import DataPage
    from cat_seg.plugin.data.datasets.pairs import Pair
    from cat_seg.plugin.data.labels import label_rule

    own, names = [], list(args.names)
    if args.images or args.labels or args.classes:
        own.append(FolderData.parse(_entry(args)))
    if args.config_file:
        base = Path(args.config_file).parent
        cfg = load_config(args.config_file, args.opts, device="cpu")
        entries = [FolderData.parse(entry, base) for entry in cfg.DATASETS.FOLDERS]
        own += [entry for entry in entries if not names or entry.name in names]
        if not entries and not names:
            names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
        names = [name for name in names if name not in {entry.name for entry in entries}]
    pages = []
    for entry in own:
        pages.append(DataPage(entry.census(), entry.rule, entry.match().pairs))
    for name in names:
        if name not in DatasetCatalog.list():
            raise CATSegError(
                f"{name!r} is no data set; expected a NAME of DATASETS.FOLDERS in --config-file, "
                "or a registered name, such as ade20k_150_test_sem_seg."
            )
        classes = MetadataCatalog.get(name).stuff_classes
        rule = label_rule(name, len(classes))
        pairs = [
            Pair(Path(record["file_name"]), Path(record["sem_seg_file_name"]))
            for record in DatasetCatalog.get(name)
        ]
        pages.append(DataPage(take_census(name, classes, pairs, rule), rule, pairs))
    if not pages:
        raise CATSegError(
            "Nothing to check: give --config-file, or --images, --labels and --classes, or the "
            "name of a registered data set."
        )
    return pages


def _entry(args: argparse.Namespace) -> dict[str, Any]:
    """The entry of DATASETS.FOLDERS that the options describe."""
    if not (args.images and args.labels and args.classes):
        raise CATSegError("--images, --labels and --classes go together; expected all three.")
    entry = {
        "NAME": Path(args.images).name or "data",
        "IMAGES": args.images,
        "LABELS": args.labels,
        "CLASSES": args.classes,
    }
    for option in args.option:
        key, separator, value = option.partition("=")
        if not separator:
            raise CATSegError(f"--option {option!r}: expected KEY=VALUE, such as OFFSET=1.")
        try:
            entry[key] = json.loads(value)
        except ValueError:
            entry[key] = value
    return entry


def build_parser() -> argparse.ArgumentParser:
    """Parse `check` and `import`."""
    parser = argparse.ArgumentParser(
        prog="cat-seg data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("check", help="count a data set, and say what smells of a mistake")
    one.add_argument(
        "names", nargs="*", metavar="NAME", help="data sets; all that are named if out"
    )
    one.add_argument("--config-file", default="", help="a YAML with DATASETS.FOLDERS")
    one.add_argument("--images", default="", metavar="DIR", help="instead of a YAML: images,")
    one.add_argument("--labels", default="", metavar="DIR", help="their label maps,")
    one.add_argument("--classes", default="", metavar="FILE", help="and names of the classes")
    one.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --images: a key of DATASETS.FOLDERS, such as OFFSET=1 or "
        'PALETTE=\'["#000000", "#ff0000"]\'; may be given several times',
    )
    one.add_argument("--html", default="", metavar="FILE", help="write a page with pictures")
    one.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE of the config")
    one.set_defaults(run=check)

    other = commands.add_parser("import", help="turn another format into label maps")
    other.add_argument("format", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    other.add_argument("source", metavar="SOURCE", help="its JSON, or its folder")
    other.add_argument("--output", required=True, metavar="DIR", help="folder to write")
    other.add_argument("--masks", default="", metavar="DIR", help="PNGs of coco-panoptic")
    other.add_argument("--classes", default="", metavar="FILE", help="names of voc's indices")
    other.set_defaults(run=import_)
    return parser

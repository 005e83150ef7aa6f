"""Evaluate one model on every benchmark that is there, and report.

    cat-seg evaluate --config-file configs/vitl.yaml MODEL.WEIGHTS path

The model is loaded once, and changes its vocabulary from one benchmark to the next. A run that
was interrupted goes on when it is started again with the same --output. Several processes
(--num-gpus, `torchrun` or `srun`) give the figures of one.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import cat_seg.plugin  # noqa: F401  (before any import of detectron2)

# isort: split
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import default_argument_parser
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm

from cat_seg.errors import CATSegError
from cat_seg.loading import load_initial_weights
from cat_seg.modeling.training_free import VARIANTS
from cat_seg.plugin.checkpointer import CATSegCheckpointer, local_weights
from cat_seg.plugin.data.datasets.builtin import BENCHMARKS, SPLITS
from cat_seg.plugin.data.datasets.registered import adopt, import_plugin, mess_datasets
from cat_seg.plugin.data.datasets.rows import ROWS
from cat_seg.plugin.data.evaluation_mapper import EvaluationMapper
from cat_seg.plugin.engine import launch, load_config, set_up
from cat_seg.plugin.engine.checks import check_settings
from cat_seg.plugin.evaluation import SegmentationEvaluator, build_evaluator
from cat_seg.plugin.evaluation.domains import domain_table
from cat_seg.plugin.evaluation.protocol import deviations, published_model
from cat_seg.plugin.evaluation.report import write_report
from cat_seg.plugin.evaluation.summary import BenchmarkResult, save_summary, summary_table
from cat_seg.plugin.meta_arch import CATSeg
from cat_seg.plugin.run_folder import RunFolder, digest_of, refuse, settings
from cat_seg.resources import user_file
from cat_seg.utils.files import digest
from cat_seg.utils.memory import keep_freed_memory

logger = logging.getLogger("cat_seg.cli.evaluate")


def main(arguments: Sequence[str]) -> int:
    """Evaluate, in as many processes as the command line asks for."""
    args = build_parser().parse_args(arguments)
    cfg = read_config(args)  # whatever is wrong shows at once
    chosen_datasets(cfg, args.benchmark)
    if cfg.MODEL.WEIGHTS:
        local_weights(cfg.MODEL.WEIGHTS)
    elif not cfg.MODEL.TRAINING_FREE:  # which takes the published CLIP
        raise CATSegError("MODEL.WEIGHTS is empty; name the weights to evaluate.")
    if args.baseline and cfg.MODEL.TRAINING_FREE:
        raise CATSegError("--baseline: MODEL.TRAINING_FREE makes the model a baseline already.")
    launch(run, args)
    return 0


def run(args: argparse.Namespace) -> None:
    """Run one process of an evaluation."""
    keep_freed_memory()
    cfg = read_config(args)
    folder = RunFolder(cfg.OUTPUT_DIR, "evaluation")
    with folder.held() if comm.is_main_process() else nullcontext():
        _run(cfg, args, folder)


def _run(cfg: CfgNode, args: argparse.Namespace, folder: RunFolder) -> None:
    args.config_file = str(user_file(args.config_file))  # for detectron2
    set_up(cfg, args)
    names = chosen_datasets(cfg, args.benchmark)
    facts = run_facts(cfg, names) if comm.is_main_process() else {}
    if comm.is_main_process():
        if folder.facts and not args.overwrite:
            advice = "Choose another --output, or replace it by --overwrite."
            refuse(folder.folder, folder.differences(facts), advice)
        folder.begin(facts, keep=not args.overwrite)
    model: CATSeg = build_model(cfg).eval()
    model.labels_only = True  # never more than a piece of one image's probabilities
    CATSegCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    of_baseline = baseline_of(cfg, model, args.baseline) if args.baseline else None
    outcomes, failures = [], []
    for name in names:
        try:
            outcome = evaluate(cfg, model, name, facts, args.limit)
            if of_baseline is not None:
                its = {**facts, "MODEL.TRAINING_FREE": args.baseline}
                below = evaluate(*of_baseline, name, its, args.limit)
                if comm.is_main_process():
                    outcome = replace(outcome, baseline=below.figures["mIoU"])
            outcomes.append(outcome)
        except CATSegError as error:
            logger.error("%s could not be evaluated: %s", name, error)
            failures.append(f"{name} could not be evaluated: {error}")
    if comm.is_main_process():
        report(cfg, outcomes, failures, args.limit)


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config that the command line asks for.

    Raises:
        CATSegError: if there is none, or it or the limit is malformed.
    """
    if not args.config_file:
        raise CATSegError("--config-file is missing, such as configs/vitl.yaml.")
    if args.limit < 0:
        raise CATSegError(f"--limit is {args.limit}; expected a number of images.")
    for module in args.plugin:
        import_plugin(module)
    output = ["OUTPUT_DIR", args.output] if args.output else []
    cfg = load_config(args.config_file, [*args.opts, *output])
    check_settings(cfg)
    return cfg


def chosen_datasets(cfg: CfgNode, asked: str = "") -> list[str]:
    """List the registered names of the datasets to evaluate on.

    Args:
        cfg: Config whose DATASETS.TEST counts as asked for where it is the user's own data.
        asked: Keys of `BENCHMARKS`, titles ("A-150") or registered names, separated by commas;
            empty for all that are there.

    Raises:
        CATSegError: if one that is asked for is unknown or not there, or none is there.
    """
    own = [entry["NAME"] for entry in cfg.DATASETS.FOLDERS]
    splits = {split.name: split.title for split in SPLITS if "train" not in split.name}
    if asked:
        aliases = BENCHMARKS | {title: name for name, title in splits.items()}
        names = [aliases.get(name.strip(), name.strip()) for name in asked.split(",")]
        if "mess" in names:
            names = [name for name in names if name != "mess"] + mess_datasets()
        for name in names:
            if name not in DatasetCatalog.list():
                known = ", ".join([*BENCHMARKS, *ROWS, "mess", *own])
                raise CATSegError(
                    f"--benchmark: {name!r} is unknown; expected one or several of {known}, "
                    "separated by commas, or a name that a --plugin registers."
                )
    else:
        names = [name for name in own if name in cfg.DATASETS.TEST]
        names += [name for name in splits if _is_there(name)]
    if not names:
        raise CATSegError(
            "No benchmark is there; set DETECTRON2_DATASETS to where they are, and see "
            "`python datasets/check.py`."
        )
    for name in names:
        adopt(name)  # or it raises
    return names


def _is_there(name: str) -> bool:
    try:
        DatasetCatalog.get(name)
    except CATSegError:
        return False
    return True


def run_facts(cfg: CfgNode, names: Sequence[str]) -> dict[str, Any]:
    """What decides the predictions: version, weights, settings of model and protocol, words."""
    facts = settings(cfg, "INPUT", "MODEL", "TEST")
    if cfg.MODEL.WEIGHTS:
        facts["weights"] = digest(local_weights(cfg.MODEL.WEIGHTS))
    clip = cfg.MODEL.SEM_SEG_HEAD.CLIP_WEIGHTS
    if clip and "://" not in clip:
        with suppress(CATSegError):  # it is not there, and not needed if the weights hold CLIP
            facts["clip weights"] = digest(local_weights(clip))
    words = {f"words of {name}": list(MetadataCatalog.get(name).vocabulary) for name in names}
    return facts | words


def baseline_of(cfg: CfgNode, model: CATSeg, variant: str) -> tuple[CfgNode, CATSeg]:
    """Make the training-free model of the same CLIP, and the config of its evaluation."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.TRAINING_FREE = variant
    cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, f"baseline-{variant}"))
    cfg.freeze()
    baseline: CATSeg = build_model(cfg).eval()
    baseline.predictor.clip_model = model.predictor.clip_model
    baseline.labels_only = True
    if model.backbone is not None and baseline.backbone is not None:
        baseline.backbone = model.backbone
    else:
        load_initial_weights(baseline)
    return cfg, baseline


def evaluate(
    cfg: CfgNode, model: CATSeg, name: str, facts: Mapping[str, Any], limit: int = 0
) -> BenchmarkResult:
    """Evaluate on one dataset, going on where the same run was interrupted.

    Args:
        cfg: of the run.
        model: with its weights.
        name: of the dataset.
        facts: see `run_facts`; of the main process.
        limit: of images; 0 for all.

    Returns:
        the outcome; in other processes than the main one that of their share alone.

    Raises:
        CATSegError: if not one image could be evaluated.
    """
    metadata = MetadataCatalog.get(name)
    model.set_vocabulary(metadata.vocabulary)
    evaluator = build_evaluator(cfg, name, limit=limit)
    # One set's run is the same, whichever others are evaluated with it.
    words = f"words of {name}"
    own = {k: v for k, v in facts.items() if not k.startswith("words of ") or k == words}
    settings_alone = {key: value for key, value in own.items() if key.partition(".")[0].isupper()}
    sources = {"words": digest_of(own.get(words, [])), "settings": digest_of(settings_alone)}
    sources |= {key: own[key] for key in ("weights", "clip weights") if key in own}
    todo = evaluator.resume(digest_of(own), sources)
    logger.info("%s: %d images to do", name, len(todo))
    predict(cfg, model, evaluator, todo)
    published = published_model(cfg)
    return BenchmarkResult(
        title=metadata.get("title", name),
        result=evaluator.result,
        published=published["mIoU"].get(name) if published else None,
    )


def predict(
    cfg: CfgNode, model: CATSeg, evaluator: SegmentationEvaluator, records: list[dict[str, Any]]
) -> None:
    """Evaluate on these images and those that the evaluator has already."""
    if not records:
        evaluator.reset()
        evaluator.evaluate()
        return
    loader = build_detection_test_loader(
        records,
        mapper=EvaluationMapper(cfg),
        batch_size=model.images_at_once,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    inference_on_dataset(model, loader, evaluator)


def report(cfg: CfgNode, outcomes: list[BenchmarkResult], failures: list[str], limit: int) -> None:
    """Log the table, and write results.json, per_class.csv and report.html to OUTPUT_DIR.

    Raises:
        CATSegError: if there is nothing to report.
    """
    if not outcomes:
        raise CATSegError("\n".join(failures))
    published = published_model(cfg)
    warnings = [f"Not the published protocol: {text}." for text in deviations(cfg)]
    if limit:
        warnings.insert(0, f"A quick look (--limit {limit}): at most {limit} images of each.")
    warnings += failures
    model = f"CAT-Seg {published['model']}" if published else "CAT-Seg"
    if cfg.MODEL.TRAINING_FREE:
        clip = cfg.MODEL.SEM_SEG_HEAD.CLIP_PRETRAINED
        model = f"CLIP {clip} alone, training-free ({cfg.MODEL.TRAINING_FREE})"
    about = {
        "model": model,
        "weights": cfg.MODEL.WEIGHTS,
        "limit": limit or None,
        "warnings": warnings,
    }
    logger.info("%s, in percent:\n%s", model, summary_table(outcomes))
    miou = {outcome.result.dataset: outcome.figures["mIoU_2021"] for outcome in outcomes}
    if table := domain_table(miou, model):
        logger.info("MESS by domain, mIoU_2021 in percent:\n%s", table)
    for text in warnings:
        logger.warning(text)
    folder = Path(cfg.OUTPUT_DIR)
    save_summary(folder, about, outcomes)
    title = f"{model}, quick look" if limit else model
    write_report(folder / "report.html", title, cfg.MODEL.WEIGHTS, outcomes, warnings)
    logger.info("Results: %s", (folder / "report.html").absolute())


def build_parser() -> argparse.ArgumentParser:
    """Detectron2's options, and ours."""
    parser = default_argument_parser(__doc__)
    parser.prog = "cat-seg evaluate"
    parser.add_argument(
        "--benchmark",
        "--benchmarks",
        default="",
        metavar="NAME",
        help="evaluate on these, separated by commas: "
        f"{', '.join([*BENCHMARKS, *ROWS])}, mess, or your own data; if left out, your own in "
        f"DATASETS.TEST, and of {', '.join(BENCHMARKS)} all that are there",
    )
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="a quick look at N images of each"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the results of another run, of other weights, words or settings",
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers data sets with detectron2's catalogs, which "
        "--benchmark may name then",
    )
    parser.add_argument(
        "--baseline",
        nargs="?",
        const="maskclip",
        default="",
        choices=VARIANTS,
        metavar="VARIANT",
        help="evaluate the model's CLIP without its aggregator too, see docs/training_free.md: "
        f"{', '.join(VARIANTS)}; maskclip if none is named",
    )
    parser.add_argument("--output", default="", help="folder of results; OUTPUT_DIR if left out")
    return parser


if __name__ == "__main__":
    from cat_seg.cli.terminal import run as run_command

    sys.exit(run_command("evaluate", lambda: main(sys.argv[1:])))

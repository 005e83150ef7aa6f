"""Train a model of CAT-Seg, or evaluate it.

    python train_net.py --config-file configs/vitl.yaml --num-gpus 4
    python train_net.py --config-file configs/vitl.yaml --benchmark ade150 --eval-only \\
        MODEL.WEIGHTS path

Processes may also be started by `torchrun` or by SLURM's `srun`.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import cat_seg.plugin  # noqa: F401  (before any import of detectron2)

# isort: split
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from cat_seg.cli.terminal import run
from cat_seg.errors import CATSegError
from cat_seg.plugin.checkpointer import CATSegCheckpointer
from cat_seg.plugin.data.datasets.builtin import BENCHMARKS, benchmark_splits
from cat_seg.plugin.engine import Trainer, check_inputs, launch, load_config, set_up
from cat_seg.plugin.engine.training_folder import begin_training, check_folder, training_facts
from cat_seg.plugin.run_folder import RunFolder
from cat_seg.resources import user_file
from cat_seg.utils.memory import keep_freed_memory

logger = logging.getLogger("cat_seg.train_net")


def main(args: argparse.Namespace) -> None:
    """Run one process of a training or an evaluation."""
    keep_freed_memory()
    cfg = load_config(args.config_file, args.opts)
    if not args.eval_only:
        folder = RunFolder(cfg.OUTPUT_DIR, "training")
        with folder.held() if comm.is_main_process() else nullcontext():
            train(cfg, args, folder)
        return
    folder = RunFolder(cfg.OUTPUT_DIR, "evaluation")
    with folder.held() if comm.is_main_process() else nullcontext():
        evaluate(cfg, args)


def evaluate(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Evaluate into a folder that no other run works in."""
    set_up(cfg, args)
    model = Trainer.build_model(cfg)
    checkpointer = CATSegCheckpointer(model, cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)


def train(cfg: CfgNode, args: argparse.Namespace, folder: RunFolder) -> None:
    """Train in a folder that no other run works in."""
    notes = []
    if comm.is_main_process():
        notes = begin_training(
            folder,
            training_facts(cfg),
            resume=args.resume,
            overwrite=args.overwrite,
            changed=args.changed,
        )
    set_up(cfg, args)
    for note in notes:
        logger.warning(note)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def build_parser() -> argparse.ArgumentParser:
    """Add our options to detectron2's."""
    parser = default_argument_parser(__doc__)
    parser.add_argument(
        "--benchmark",
        default="",
        metavar="NAME",
        help=f"evaluate on these, separated by commas, instead of DATASETS.TEST: "
        f"{', '.join(BENCHMARKS)}",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="a new training replaces the one in OUTPUT_DIR"
    )
    parser.add_argument(
        "--changed",
        action="store_true",
        help="--resume also with other settings, weights, words or data, which are named",
    )
    return parser


def start(arguments: Sequence[str] | None = None) -> int:
    """Check what is asked for, and run it in as many processes as that takes."""
    args = build_parser().parse_args(arguments)
    if not args.config_file:
        raise CATSegError("--config-file is missing, such as configs/vitl.yaml.")
    if args.benchmark:
        args.opts += ["DATASETS.TEST", str(benchmark_splits(args.benchmark))]
    args.config_file = str(user_file(args.config_file))
    cfg = load_config(args.config_file, args.opts)
    check_inputs(cfg, train=not args.eval_only, resume=args.resume)
    if not args.eval_only:
        folder = RunFolder(cfg.OUTPUT_DIR, "training")
        check_folder(folder, resume=args.resume, overwrite=args.overwrite)
    launch(main, args)
    return 0


if __name__ == "__main__":
    sys.exit(run("train_net.py", start))

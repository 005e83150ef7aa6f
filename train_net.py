"""Train a model of CAT-Seg, or evaluate it.

    python train_net.py --config-file configs/vitl.yaml --num-gpus 4
    python train_net.py --config-file configs/vitl.yaml --benchmark ade150 --eval-only \\
        MODEL.WEIGHTS path

Processes may also be started by `torchrun` or by SLURM's `srun`.
"""

from __future__ import annotations

import argparse
import sys

import cat_seg.plugin  # noqa: F401  (before any import of detectron2)

# isort: split
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from cat_seg.plugin.checkpointer import CATSegCheckpointer
from cat_seg.plugin.data.datasets.builtin import BENCHMARKS, benchmark_splits
from cat_seg.plugin.engine import Trainer, check_inputs, launch, load_config
from cat_seg.resources import user_file
from cat_seg.utils.memory import keep_freed_memory


def main(args: argparse.Namespace) -> None:
    """Run one process of a training or an evaluation."""
    keep_freed_memory()
    cfg = load_config(args.config_file, args.opts)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="cat_seg")
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        return
    model = Trainer.build_model(cfg)
    checkpointer = CATSegCheckpointer(model, cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)


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
    return parser


if __name__ == "__main__":
    args = build_parser().parse_args()
    try:
        if not args.config_file:
            raise ValueError("--config-file is missing, such as configs/vitl.yaml.")
        if args.benchmark:
            args.opts += ["DATASETS.TEST", str(benchmark_splits(args.benchmark))]
        args.config_file = str(user_file(args.config_file))
        cfg = load_config(args.config_file, args.opts)
        check_inputs(cfg, train=not args.eval_only, resume=args.resume)
        launch(main, args)
    except ValueError as error:
        sys.exit(f"train_net.py: {error}")

"""The trainer: detectron2's, with the parts of this project put in."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from cat_seg.errors import CATSegError
from cat_seg.inference import AUTOCAST
from cat_seg.plugin.checkpointer import CATSegCheckpointer
from cat_seg.plugin.data.evaluation_mapper import EvaluationMapper
from cat_seg.plugin.data.train_loader import build_train_loader
from cat_seg.plugin.data.vocabulary import vocabulary_of
from cat_seg.plugin.engine.checkpoints import Checkpoints
from cat_seg.plugin.engine.random_state import kept_random_state
from cat_seg.plugin.engine.train_step import TrainStep
from cat_seg.plugin.evaluation import build_evaluator
from cat_seg.plugin.solver import build_lr_scheduler, build_optimizer

LOG_PERIOD = 20  # iterations


class Trainer(DefaultTrainer):
    """Trains the model of a config, on one process or on many, with a GPU or without."""

    def __init__(self, cfg: CfgNode) -> None:
        """Build model, optimiser, data, schedule, checkpointer and hooks."""
        # Not DefaultTrainer's own: it knows neither our checkpointer nor training on many CPUs.
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = TrainStep(
            distribute(model),
            self.build_train_loader(cfg),
            optimizer,
            precision=_precision(cfg),
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = CATSegCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Timing, schedule, checkpoints, evaluation and logs, in this order."""
        cfg = self.cfg

        def evaluate() -> OrderedDict[str, Any]:
            self._last_eval_results = self.test(cfg, self.model)
            return self._last_eval_results

        chosen: list[HookBase] = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            Checkpoints(
                self.checkpointer,
                period=cfg.SOLVER.CHECKPOINT_PERIOD,
                keep=cfg.SOLVER.CHECKPOINT_KEEP,
            ),
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate),
        ]
        if comm.is_main_process():
            chosen.append(hooks.PeriodicWriter(self.build_writers(), period=LOG_PERIOD))
        return chosen

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See `cat_seg.plugin.solver`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """See `cat_seg.plugin.solver`."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """See `cat_seg.plugin.data.train_loader`."""
        return build_train_loader(cfg)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """See `cat_seg.plugin.evaluation`; files go to OUTPUT_DIR/inference/<data set>."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """See `cat_seg.plugin.data.evaluation_mapper`."""
        return build_detection_test_loader(cfg, dataset_name, mapper=EvaluationMapper(cfg))

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> OrderedDict[str, Any]:
        """Evaluate on DATASETS.TEST, each data set with its own vocabulary.

        TEST_CLASS_JSON, where given, is the vocabulary of all. The random state of training is
        left as it was.
        """
        segmenter: Any = model.module if isinstance(model, DistributedDataParallel) else model
        if len(cfg.DATASETS.TEST) < 2 or evaluators is not None:
            with kept_random_state():
                return super().test(cfg, segmenter, evaluators)
        results = OrderedDict()
        for name in cfg.DATASETS.TEST:
            one = cfg.clone()
            one.defrost()
            one.DATASETS.TEST = (name,)
            names = vocabulary_of(cfg.MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON, [name])
            segmenter.set_vocabulary(names)
            results[name] = cls.test(one, segmenter)
        return results


def distribute(model: nn.Module) -> nn.Module:
    """Wrap a model so that its gradients are averaged over all processes, if there are several."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        # Some weights train by name but not in every model, such as the queries of CLIP's last
        # block, of which only the values are used.
        find_unused_parameters=True,
    )


def _precision(cfg: CfgNode) -> torch.dtype | None:
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    if cfg.SOLVER.AMP.DTYPE not in AUTOCAST:
        raise CATSegError(
            f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE!r}; expected one of {sorted(AUTOCAST)}."
        )
    return AUTOCAST[cfg.SOLVER.AMP.DTYPE]

"""Optimizers, schedules, checkpoints, the loop and its hooks, logs, and processes."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import subprocess
import sys
import weakref
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cat_seg.compat
from tests.compat.implementations import IS_REAL, Implementation

PROJECT = Path(cat_seg.compat.__file__).parents[2]
needs_both = pytest.mark.skipif(not IS_REAL, reason="needs the real detectron2")


def both() -> tuple[Implementation, Implementation]:
    return Implementation("detectron2"), Implementation("stand_in")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.last = nn.Linear(4, 1)

    def forward(self, batch):
        y = self.last(self.norm(self.first(batch)))
        return {"loss_a": (y**2).mean(), "loss_b": y.abs().mean()} if self.training else y


def seeded_model() -> Model:
    torch.manual_seed(0)
    return Model()


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in count():
        yield torch.rand(5, 3, generator=generator)


def small_config(d2, folder):
    cfg = d2("config").get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.OUTPUT_DIR = str(folder)
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.CHECKPOINT_PERIOD = 5
    cfg.SOLVER.WARMUP_ITERS = 3
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.STEPS = (6,)
    cfg.TEST.EVAL_PERIOD = 3
    return cfg


def trainer(d2, cfg, model=None):
    """A trainer with parts of its own, as the project's is."""
    engine, hooks = d2("engine"), d2("engine.hooks")

    class Step(engine.SimpleTrainer):
        def run_step(self):
            losses = self.model(next(self._data_loader_iter))
            self.optimizer.zero_grad()
            sum(losses.values()).backward()
            self._write_metrics(losses, 0.5)
            self.optimizer.step()

    class Save(engine.HookBase):
        def after_step(self):
            done = self.trainer.iter + 1
            if done == self.trainer.max_iter:
                self.trainer.checkpointer.save("model_final", iteration=self.trainer.iter)
            elif done % 5 == 0:
                name = f"model_{self.trainer.iter:07d}"
                self.trainer.checkpointer.save(name, iteration=self.trainer.iter)

    class Trainer(engine.DefaultTrainer):
        def __init__(self, cfg):
            engine.TrainerBase.__init__(self)
            parts = model or seeded_model()
            optimizer = torch.optim.SGD(parts.parameters(), lr=cfg.SOLVER.BASE_LR)
            self._trainer = Step(parts, batches(), optimizer)
            self.scheduler = d2("solver").build_lr_scheduler(cfg, optimizer)
            self.checkpointer = d2("checkpoint").DetectionCheckpointer(
                parts, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
            )
            self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
            score = {"sem_seg": {"mIoU": parts.last.bias.detach()}}
            self.register_hooks(
                [
                    hooks.IterationTimer(),
                    hooks.LRScheduler(),
                    Save(),
                    hooks.EvalHook(cfg.TEST.EVAL_PERIOD, lambda: score),
                    hooks.PeriodicWriter(self.build_writers(), period=20),
                ]
            )

    return Trainer(cfg)


# ---- solver ------------------------------------------------------------------------------------


def rates(d2, name, **values):
    cfg = d2("config").get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS = 50, 10, (20, 40)
    for key, value in values.items():
        cfg.SOLVER[key] = value
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.01}]
    optimizer = torch.optim.SGD(groups, lr=cfg.SOLVER.BASE_LR)
    schedule = d2("solver").build_lr_scheduler(cfg, optimizer)
    result = []
    for _ in range(50):
        result.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return np.array(result)


def test_schedules_warm_up_and_fall(d2):
    steps = rates(d2, "WarmupMultiStepLR", BASE_LR=1.0, WARMUP_FACTOR=0.1)[:, 0]
    np.testing.assert_allclose(steps[[0, 5, 10, 19, 20, 40]], [0.1, 0.55, 1, 1, 0.1, 0.01])
    cosine = rates(d2, "WarmupCosineLR", BASE_LR=1.0, WARMUP_ITERS=0)
    np.testing.assert_allclose(cosine[:, 0], (1 + np.cos(np.pi * np.arange(50) / 50)) / 2)
    np.testing.assert_allclose(cosine[:, 1], 0.01 * cosine[:, 0])
    with pytest.raises(ValueError, match="Unknown LR scheduler"):
        rates(d2, "Unknown")


@needs_both
@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize("rescale", [False, True])
def test_learning_rates_are_the_same(name, method, rescale):
    settings = {"WARMUP_METHOD": method, "RESCALE_INTERVAL": rescale, "BASE_LR_END": 0.0001}
    theirs, ours = (rates(d2, name, **settings) for d2 in both())
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_gradients_are_clipped_before_a_step(d2, kind):
    cfg = d2("config").get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    parameter = nn.Parameter(torch.zeros(2))
    kind_of_optimizer = d2("solver.build").maybe_add_gradient_clipping(cfg, torch.optim.SGD)
    optimizer = kind_of_optimizer([parameter], lr=1.0)
    assert type(optimizer).__name__ == "SGDWithGradientClip"
    parameter.grad = torch.tensor([3.0, -4.0])
    optimizer.step()
    expected = [-0.5, 0.5] if kind == "value" else [-0.3, 0.4]
    torch.testing.assert_close(parameter.data, torch.tensor(expected))


# ---- checkpoints -------------------------------------------------------------------------------


def test_checkpoint_is_saved_and_resumed(d2, tmp_path):
    model, state = seeded_model(), nn.Linear(1, 1)
    checkpointer = d2("checkpoint").DetectionCheckpointer(model, str(tmp_path), extra=state)
    assert checkpointer.resume_or_load("", resume=True) == {}
    checkpointer.save("model_0000001", iteration=1)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    other, extra = Model(), nn.Linear(1, 1)
    again = d2("checkpoint").DetectionCheckpointer(other, str(tmp_path), extra=extra)
    assert again.resume_or_load("", resume=True)["iteration"] == 1
    assert torch.equal(other.first.weight, model.first.weight)
    assert torch.equal(extra.weight, state.weight)


def test_pkl_checkpoint_is_read(d2, tmp_path):
    weights = {k: v.numpy() for k, v in seeded_model().state_dict().items()}
    with open(tmp_path / "model.pkl", "wb") as file:
        pickle.dump({"model": weights, "__author__": "someone"}, file)
    model = Model()
    d2("checkpoint").DetectionCheckpointer(model).load(str(tmp_path / "model.pkl"))
    np.testing.assert_array_equal(model.last.weight.detach().numpy(), weights["last.weight"])


def test_pkl_is_not_executed_by_the_stand_in(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": {"x": Evil()}}))
    d2 = Implementation("stand_in" if IS_REAL else "detectron2")
    with pytest.raises(ValueError, match=r"evil\.pkl"):
        d2("checkpoint").DetectionCheckpointer(Model()).load(str(tmp_path / "evil.pkl"))
    assert not (tmp_path / "executed").exists()


@needs_both
@pytest.mark.parametrize("back", [False, True])
def test_training_goes_on_from_the_other_s_checkpoint(tmp_path, back):
    first, second = both()[::-1] if back else both()
    started = trainer(first, small_config(first, tmp_path))
    started.train()
    resumed = trainer(second, small_config(second, tmp_path))
    resumed.checkpointer.load(str(tmp_path / "model_0000004.pth"))
    assert resumed.iter == 4
    assert resumed.scheduler.last_epoch == 5  # stepped before the checkpoint was written
    resumed.start_iter = 5
    data = batches()
    for _ in range(5):
        next(data)
    resumed._trainer.data_loader = data
    resumed.train()
    for theirs, ours in zip(started.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(theirs, ours)


# ---- loop and hooks ----------------------------------------------------------------------------


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    times = ("time", "data_time", "rank_data_time", "eta_seconds")
    return [{k: v for k, v in row.items() if k not in times} for row in rows]


def test_trainer_trains_saves_evaluates_and_writes(d2, tmp_path):
    run = trainer(d2, small_config(d2, tmp_path))
    before = run.model.first.weight.detach().clone()
    run.resume_or_load(resume=False)
    run.train()
    assert not torch.equal(before, run.model.first.weight)
    assert sorted(f.name for f in tmp_path.glob("*.pth")) == [
        "model_0000004.pth",
        "model_final.pth",
    ]
    rows = metrics(tmp_path)
    assert rows[-1]["iteration"] in (7, 8)
    assert {"loss_a", "loss_b", "total_loss", "lr", "sem_seg/mIoU"} <= {k for r in rows for k in r}
    assert list(tmp_path.glob("events.out.tfevents.*"))
    resumed = trainer(d2, small_config(d2, tmp_path))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 8


@needs_both
def test_trainers_agree(tmp_path, caplog, monkeypatch):
    found = []
    for d2 in both():
        folder = tmp_path / d2.name
        run = trainer(d2, small_config(d2, folder))
        for name in (d2.name, "detectron2", "fvcore"):  # one logger has its name from detectron2
            monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run.train()
        lines = [record.getMessage().replace(str(folder), "") for record in caplog.records]
        lines = [re.sub(r"(eta:|time: ?)\s*[\d:.]+|\([\d:.]+|in \d.*", "#", x) for x in lines]
        weights = torch.cat([p.detach().ravel() for p in run.model.parameters()])
        found.append((metrics(folder), lines, weights.tolist(), list(run.state_dict())))
    for theirs, ours in zip(*found, strict=True):
        assert ours == theirs


def test_hooks_are_called_in_order_and_keep_state(d2):
    engine = d2("engine")
    calls = []

    class Note(engine.HookBase):
        def __init__(self):
            self.seen = 0

        def before_train(self):
            calls.append("before_train")

        def before_step(self):
            calls.append("before_step")

        def after_step(self):
            self.seen += 1
            calls.append("after_step")

        def after_train(self):
            calls.append("after_train")

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    class Loop(engine.TrainerBase):
        def run_step(self):
            calls.append("step")
            if self.iter == 5:
                raise RuntimeError("stop")

    loop = Loop()
    loop.register_hooks([Note(), None])
    loop.train(2, 4)
    step = ["before_step", "step", "after_step"]
    assert calls == ["before_train", *step, *step, "after_train"]
    state = loop.state_dict()
    assert (state["iteration"], [*state["hooks"].values()]) == (4, [{"seen": 2}])
    again = Loop()
    again.register_hooks([Note()])
    again.load_state_dict(state)
    assert again.iter == 4 and again._hooks[0].seen == 2
    calls.clear()
    with pytest.raises(RuntimeError, match="stop"):
        again.train(5, 9)
    assert calls[-1] == "after_train"


def test_loss_that_is_not_finite_stops(d2, tmp_path):
    model = seeded_model()
    nn.init.constant_(model.last.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="iteration=0"):
        trainer(d2, small_config(d2, tmp_path), model).train()


def test_config_is_scaled_to_the_number_of_processes(d2, tmp_path):
    scale = d2("engine").DefaultTrainer.auto_scale_workers
    cfg = small_config(d2, tmp_path)
    assert scale(cfg, 4) is cfg
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.freeze()
    scaled = scale(cfg, 4)
    solver = scaled.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (8, 0.05, 16)
    assert (solver.STEPS, solver.WARMUP_ITERS, scaled.TEST.EVAL_PERIOD) == ((12,), 6, 6)
    assert solver.REFERENCE_WORLD_SIZE == 4 and scaled.is_frozen()
    assert cfg.SOLVER.IMS_PER_BATCH == 16


# ---- events, logs, command line, processes -----------------------------------------------------


def test_storage_keeps_histories(d2):
    events = d2("utils.events")
    with pytest.raises(AssertionError, match="EventStorage"):
        events.get_event_storage()
    with events.EventStorage(10) as storage:
        assert events.get_event_storage() is storage
        for value in (5.0, 1.0, 3.0):
            storage.put_scalar("loss", value)
            storage.put_scalar("lr", value, smoothing_hint=False)
            storage.iter += 1
        storage.put_scalars(a=1, b=2)
        assert storage.iter == 13
        assert storage.latest()["a"] == (1.0, 13)
        smooth = storage.latest_with_smoothing_hint(20)
        assert smooth["loss"] == (3.0, 12) and smooth["lr"] == (3.0, 12)
        assert storage.latest_with_smoothing_hint(2)["loss"][0] == np.median([1.0, 3.0])
        assert storage.history("loss").latest() == 3.0
        with pytest.raises(KeyError, match="none"):
            storage.history("none")
        with pytest.raises(AssertionError, match="smoothing_hint"):
            storage.put_scalar("lr", 1.0)
    with pytest.raises(AssertionError, match="EventStorage"):
        events.get_event_storage()


def test_logger_writes_terminal_and_file(d2, tmp_path, capsys):
    logger = d2("utils.logger").setup_logger(
        str(tmp_path), name=f"compat_{d2.name}", abbrev_name="C"
    )
    again = d2("utils.logger").setup_logger(
        str(tmp_path), name=f"compat_{d2.name}", abbrev_name="C"
    )
    assert again is logger and len(logger.handlers) == 2
    logging.getLogger(f"compat_{d2.name}.part").warning("careful")
    for handler in logger.handlers:
        handler.flush()
    assert re.search(r"C\.part.*\]: .*careful", capsys.readouterr().out)
    line = (tmp_path / "log.txt").read_text()
    assert re.fullmatch(r"\[[\d/ :]+\] C\.part WARNING: careful\n", line)
    d2("utils.logger").setup_logger(str(tmp_path), 1, name=f"compat_{d2.name}_rank")
    assert (tmp_path / "log.txt.rank1").is_file()


def test_command_line(d2):
    parse = d2("engine").default_argument_parser().parse_args
    args = parse(["--config-file", "x.yaml", "--num-gpus", "2", "--eval-only", "A.B", "1"])
    assert (args.config_file, args.num_gpus, args.eval_only) == ("x.yaml", 2, True)
    assert args.opts == ["A.B", "1"] and args.resume is False and args.machine_rank == 0
    assert args.dist_url.startswith("tcp://127.0.0.1:")


@needs_both
def test_command_line_options_are_the_same():
    theirs, ours = (vars(d2("engine").default_argument_parser().parse_args([])) for d2 in both())
    assert ours == theirs


def test_setup_seeds_and_writes_the_config(d2, tmp_path):
    cfg = small_config(d2, tmp_path)
    cfg.SEED = 7
    args = d2("engine").default_argument_parser().parse_args(["--eval-only"])
    drawn = []
    for _ in range(2):
        d2("engine").default_setup(cfg, args)
        drawn.append((np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    written = d2("config").get_cfg()
    written.merge_from_file(str(tmp_path / "config.yaml"))
    assert written.SEED == 7
    assert "Running with full config" in (tmp_path / "log.txt").read_text()


def test_launch_starts_processes_that_know_each_other(tmp_path):
    """With the detectron2 that is imported: of a second one, processes would know nothing."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "def main(folder):\n"
        "    from detectron2.utils import comm\n"
        "    rank = comm.get_rank()\n"
        "    words = [str(x) for x in comm.all_gather(rank)]\n"
        "    words += [comm.gather(rank)]\n"
        "    same = comm.all_gather(comm.shared_random_seed())\n"
        "    words += [same[0] == same[1], comm.is_main_process()]\n"
        "    open(f'{folder}/{rank}', 'w').write(' '.join(map(str, words)))\n"
        "    comm.synchronize()\n"
        "if __name__ == '__main__':\n"
        "    from cat_seg.compat import ensure_detectron2\n"
        "    ensure_detectron2()\n"
        "    from detectron2.engine import launch\n"
        f"    launch(main, 2, dist_url='auto', args=({str(tmp_path)!r},))\n"
    )
    result = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert result.returncode == 0, result.stderr
    said = result.stderr.count("detectron2 is not installed")
    assert said == (0 if IS_REAL else 1)  # by the first process alone
    assert (tmp_path / "0").read_text() == "0 1 [0, 1] True True"
    assert (tmp_path / "1").read_text() == "0 1 [] True False"

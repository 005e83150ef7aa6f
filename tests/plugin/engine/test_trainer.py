"""Training of a toy model: resuming, accumulation, precision, and what stops a run."""

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.env import seed_all_rng

from cat_seg.plugin.engine import Trainer
from cat_seg.plugin.engine.train_step import largest_gradients
from tests.plugin.engine.toy import CLASSES, NAME, register_toy_data, toy_config


class RecordingTrainer(Trainer):
    """Keeps the loss of each step, and stops as if killed before the step `dies_at`."""

    dies_at = -1

    def __init__(self, cfg: CfgNode) -> None:
        seed_all_rng(cfg.SEED)  # as default_setup does
        super().__init__(cfg)
        self.losses: dict[int, float] = {}

    def run_step(self) -> None:
        if self.iter == self.dies_at:
            raise KeyboardInterrupt
        super().run_step()
        self.losses[self.iter] = self.storage.latest()["total_loss"][0]


def train(cfg: CfgNode, *, resume: bool = False, dies_at: int = -1) -> RecordingTrainer:
    trainer = RecordingTrainer(cfg)
    trainer.dies_at = dies_at
    trainer.resume_or_load(resume=resume)
    if dies_at < 0:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return trainer


@pytest.fixture
def entries(tmp_path: Path) -> Iterator[list[dict[str, str]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster on images of 16 x 16
    yield register_toy_data(tmp_path)
    torch.set_num_threads(threads)


class LabelCount(DatasetEvaluator):
    """An evaluator that uses up random numbers, as evaluation must not be felt in training."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        torch.rand(3)

    def evaluate(self) -> dict:
        return {"sem_seg": {"mIoU": 50.0}}


@pytest.mark.parametrize("amp", [False, True])
def test_a_killed_run_resumes_as_if_it_had_not_stopped(
    entries: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: bool
) -> None:
    monkeypatch.setattr(Trainer, "build_evaluator", lambda cfg, name: LabelCount())
    Path(entries[3]["file_name"]).write_bytes(b"damaged")
    settings = ("DATASETS.TEST", (NAME,), "TEST.EVAL_PERIOD", 4, "SOLVER.AMP.ENABLED", amp)
    whole = train(toy_config(tmp_path / "whole", *settings))
    assert list(whole.losses) == list(range(10))
    assert len(set(whole.losses.values())) == 10

    cfg = toy_config(tmp_path / "killed", *settings)
    killed = train(cfg, dies_at=6)
    resumed = train(cfg, resume=True)
    assert list(resumed.losses) == [4, 5, 6, 7, 8, 9]
    assert killed.losses | resumed.losses == whole.losses
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    rates = [trainer.optimizer.param_groups[0]["lr"] for trainer in (whole, resumed)]
    assert rates[0] == rates[1]


def test_each_data_set_is_evaluated_with_its_own_words(
    entries: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "build_evaluator", lambda cfg, name: LabelCount())
    other = f"{NAME}_other"
    DatasetCatalog.register(other, lambda: entries[:2])
    MetadataCatalog.get(other).set(vocabulary=["cat", "dog"])
    try:
        cfg = toy_config(tmp_path, "DATASETS.TEST", (NAME, other))
        model, heard = Trainer.build_model(cfg), []
        model.set_vocabulary = heard.append
        results = Trainer.test(cfg, model)
        assert heard == [CLASSES, ["cat", "dog"]]
        assert list(results) == [NAME, other]
        assert results[other]["sem_seg"]["mIoU"] == 50.0

        (tmp_path / "names.json").write_text('["sun", "moon"]')
        cfg.MODEL.SEM_SEG_HEAD.TEST_CLASS_JSON = str(tmp_path / "names.json")
        Trainer.test(cfg, model)
        assert heard[2:] == [["sun", "moon"]] * 2
    finally:
        DatasetCatalog.remove(other)
        MetadataCatalog.remove(other)


def test_resuming_without_a_checkpoint_starts_anew(
    entries: list[dict[str, str]], tmp_path: Path
) -> None:
    trainer = train(toy_config(tmp_path / "out"), resume=True)
    assert list(trainer.losses) == list(range(10))


def test_a_resumed_run_with_another_seed_keeps_its_order(
    entries: list[dict[str, str]], tmp_path: Path
) -> None:
    whole = train(toy_config(tmp_path / "whole"))
    train(toy_config(tmp_path / "killed"), dies_at=5)
    resumed = train(toy_config(tmp_path / "killed", "SEED", 2), resume=True)
    assert resumed.losses[9] == whole.losses[9]


def test_only_the_newest_checkpoints_are_kept(
    entries: list[dict[str, str]], tmp_path: Path
) -> None:
    def written(keep: int) -> list[str]:
        output = tmp_path / f"keep{keep}"
        cfg = toy_config(output, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.CHECKPOINT_KEEP", keep)
        train(cfg, dies_at=7)
        train(cfg, resume=True)
        return sorted(path.name for path in output.glob("*.pth"))

    periodic = [f"model_{iteration:07d}.pth" for iteration in (1, 3, 5, 7)]
    assert written(0) == [*periodic, "model_final.pth"]
    assert written(2) == [*periodic[-2:], "model_final.pth"]


def test_accumulated_batches_equal_one_large_batch(
    entries: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without crops, jitter and dropout, so that both see the same.
    settings = ("INPUT.CROP.ENABLED", False, "INPUT.COLOR_AUG_SSD", False)
    settings += ("INPUT.MIN_SIZE_TRAIN", (16,), "INPUT.RANDOM_FLIP", "none")
    runs = []
    for batch, steps in ((4, 1), (2, 2), (1, 4)):
        cfg = toy_config(tmp_path, *settings, "SOLVER.IMS_PER_BATCH", batch)
        cfg.SOLVER.ACCUMULATE_STEPS = steps
        trainer = RecordingTrainer(cfg)
        trainer.model.dropout = 0.0
        trainer.train()
        runs.append(trainer)
    for other in runs[1:]:
        assert other.losses == pytest.approx(runs[0].losses, rel=1e-5)
        for a, b in zip(other.model.parameters(), runs[0].model.parameters(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_mixed_precision_trains(entries: list[dict[str, str]], tmp_path: Path, dtype: str) -> None:
    trainer = train(toy_config(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype))
    reference = train(toy_config(tmp_path))
    assert trainer.losses == pytest.approx(reference.losses, rel=0.05)
    assert trainer.losses != reference.losses
    assert trainer.model.head.weight.dtype == torch.float32


def test_an_unknown_precision_is_an_error(entries: list[dict[str, str]], tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "fp8")
    with pytest.raises(ValueError, match=r"SOLVER\.AMP\.DTYPE is 'fp8'; expected"):
        Trainer(cfg)


def test_sgd_learns(entries: list[dict[str, str]], tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, "SOLVER.OPTIMIZER", "SGD", "SOLVER.MAX_ITER", 40)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    losses = list(train(cfg).losses.values())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_loss_that_is_not_finite_stops_the_run(
    entries: list[dict[str, str]], tmp_path: Path
) -> None:
    trainer = RecordingTrainer(toy_config(tmp_path))
    forward = trainer.model.forward

    def diverging(batch: list[dict]) -> dict:
        losses = forward(batch)
        return {k: v * (math.nan if trainer.iter == 3 else 1) for k, v in losses.items()}

    trainer.model.forward = diverging
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = str(error.value)
    assert "The loss is nan at iteration 3" in message
    assert sum(entry["file_name"] in message for entry in entries) == 2
    assert "conv1.weight" in message and "transformer.bias" in message
    assert list(trainer.losses) == [0, 1, 2]


def test_gradients_that_are_not_finite_stop_the_run(
    entries: list[dict[str, str]], tmp_path: Path
) -> None:
    trainer = RecordingTrainer(toy_config(tmp_path))
    trainer.model.head.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FloatingPointError, match=r"norm of the gradients is .* at iteration 0"):
        trainer.train()
    assert not list(Path(tmp_path).glob("*.pth"))


def test_largest_gradients_name_what_is_not_a_number_first() -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1, bias=False) for name in "abc"})
    for name, value in (("a", 1.0), ("b", math.nan)):
        model[name].weight.grad = torch.tensor([[value]])
    (first, norm), *rest = largest_gradients(model)
    assert first == "b.weight" and math.isnan(norm)
    assert rest == [("a.weight", 1.0)]


def test_bad_images_are_named_and_skipped_up_to_a_limit(
    entries: list[dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [entries[1]["file_name"], entries[4]["file_name"]]
    for path in bad:
        Path(path).write_bytes(b"damaged")
    logging.getLogger("cat_seg").propagate = True
    train(toy_config(tmp_path, "SOLVER.MAX_BAD_IMAGES", 2))
    warnings = [record.getMessage() for record in caplog.records if "Bad" in record.msg]
    assert len(warnings) == 2  # once each, though they come up again
    assert all(any(path in text for text in warnings) for path in bad)

    with pytest.raises(RuntimeError, match=r"2 training images are unusable.*MAX_BAD_IMAGES 1"):
        train(toy_config(tmp_path, "SOLVER.MAX_BAD_IMAGES", 1))


def test_after_a_bad_image_workers_resume_with_the_same_samples(
    entries: list[dict[str, str]], tmp_path: Path
) -> None:
    Path(entries[2]["file_name"]).write_bytes(b"damaged")
    opts = ("SOLVER.MAX_BAD_IMAGES", 1, "DATALOADER.NUM_WORKERS", 2, "SOLVER.IMS_PER_BATCH", 2)

    def read(start: int, batches: int) -> list[tuple[int, str]]:
        loader = Trainer.build_train_loader(toy_config(tmp_path, *opts))
        loader.dataset.seek(loader.dataset.seed, start)
        read = [
            sample for _, batch in zip(range(batches), loader, strict=False) for sample in batch
        ]
        return [(sample["position"], sample["file_name"]) for sample in read]

    whole = read(0, 9)
    assert [position for position, _ in whole] == list(range(18))
    assert read(6, 6) == whole[6:]  # a batch later, the workers' turns are the other way round


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("SOLVER.MAX_BAD_IMAGES", 0), "MAX_BAD_IMAGES 0"),
        (("SOLVER.MAX_BAD_IMAGES", 7), "none of the 7 training images"),
    ],
)
def test_a_dataset_of_bad_images_stops_the_run(
    entries: list[dict[str, str]], tmp_path: Path, opts: tuple, message: str
) -> None:
    for entry in entries:
        Path(entry["file_name"]).write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match=message):
        train(toy_config(tmp_path, *opts))


def test_logs_are_written(
    entries: list[dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(toy_config(tmp_path, "SOLVER.MAX_ITER", 40))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [19, 39]
    for key in ("total_loss", "lr", "gradient_norm", "data_time", "time"):
        assert key in lines[-1], key
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_workers_read_each_image_once(entries: list[dict[str, str]], tmp_path: Path) -> None:
    cfg = toy_config(tmp_path, "DATALOADER.NUM_WORKERS", 2, "SOLVER.IMS_PER_BATCH", 1)
    loader = iter(Trainer.build_train_loader(cfg))
    epoch = [next(loader)[0] for _ in entries]
    assert {sample["file_name"] for sample in epoch} == {e["file_name"] for e in entries}
    assert [sample["position"] for sample in epoch] == list(range(7))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.IMS_PER_BATCH", 0, "SOLVER.IMS_PER_BATCH is 0; expected a multiple of the 1"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "only 'TrainingSampler'"),
    ],
)
def test_impossible_loaders_are_errors(
    entries: list[dict[str, str]], tmp_path: Path, key: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Trainer.build_train_loader(toy_config(tmp_path, key, value))

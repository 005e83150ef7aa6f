"""The command line: training, resuming after a kill, evaluation, and its one-sentence errors."""

import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from cat_seg.errors import CATSegError
from cat_seg.plugin.checkpointer import CATSegCheckpointer
from cat_seg.plugin.engine import check_inputs
from cat_seg.plugin.run_folder import RunFolder
from tests.plugin.engine.toy import CLASSES, NAME, register_toy_data, toy_config

TRAIN_NET = Path(__file__).parents[3] / "train_net.py"


def _run(arguments: tuple[str, ...], output: Path) -> None:
    sys.stdout = sys.stderr = output.open("w", buffering=1)
    torch.set_num_threads(1)
    fork = partial(torch.multiprocessing.start_processes, start_method="fork")
    torch.multiprocessing.start_processes = fork  # which is fast, and knows the toy model
    # Under nohup, or in the background of a script, signals come ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    sys.argv = ["train_net.py", *arguments]
    runpy.run_path(str(TRAIN_NET), run_name="__main__")


def start(folder: Path, *arguments: object) -> multiprocessing.Process:
    """Run train_net.py in a process of its own, which writes to `folder`/output.txt."""
    context = multiprocessing.get_context("fork")  # knows the toy model
    process = context.Process(target=_run, args=(tuple(map(str, arguments)), folder / "output.txt"))
    process.start()
    return process


def train_net(folder: Path, *arguments: object) -> tuple[int | None, str]:
    """Exit code and what was printed."""
    process = start(folder, *arguments)
    process.join(120)
    return process.exitcode, (folder / "output.txt").read_text()


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """The toy training as a YAML, on a folder of images and one of label maps."""
    register_toy_data(tmp_path)
    (tmp_path / "names.json").write_text(json.dumps(CLASSES))
    cfg = toy_config(tmp_path / "out")
    cfg.DATASETS.FOLDERS = [
        {
            "NAME": "own_data",
            "IMAGES": str(tmp_path / "images"),
            "LABELS": str(tmp_path / "labels"),
            "CLASSES": str(tmp_path / "names.json"),
        }
    ]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("own_data",)
    return written(cfg, tmp_path)


def written(cfg: CfgNode, folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(cfg.dump())
    return path


def test_train_on_own_data_and_evaluate(config_file: Path, tmp_path: Path) -> None:
    code, printed = train_net(
        tmp_path, "--config-file", config_file, "SOLVER.MAX_ITER", 30, "SOLVER.BASE_LR", 0.3
    )
    assert code == 0, printed
    assert "eta: " in printed and "total_loss: " in printed and "mIoU" in printed
    last = json.loads((tmp_path / "out/metrics.json").read_text().splitlines()[-1])
    weights = tmp_path / "out/model_final.pth"

    code, printed = train_net(
        tmp_path, "--config-file", config_file, "--eval-only", "MODEL.WEIGHTS", weights
    )
    assert code == 0, printed
    results = json.loads((tmp_path / "out/inference/own_data/results.json").read_text())
    assert results["mIoU"] == pytest.approx(last["sem_seg/mIoU"]), results


def test_a_run_that_is_killed_resumes(config_file: Path, tmp_path: Path) -> None:
    options = ("SOLVER.MAX_ITER", 100, "SOLVER.CHECKPOINT_PERIOD", 20, "DATASETS.TEST", "()")
    options += ("SOLVER.CHECKPOINT_KEEP", 2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, printed = train_net(tmp_path, "--config-file", config_file, *options, "OUTPUT_DIR", whole)
    assert code == 0, printed

    arguments = ("--config-file", config_file, "--resume", *options, "OUTPUT_DIR", killed)
    process = start(tmp_path, *arguments)
    while not list(killed.glob("model_*.pth")) and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert not (killed / "model_final.pth").exists()
    code, printed = train_net(tmp_path, *arguments)
    assert code == 0, printed
    assert "Starting training from iteration 0" not in printed
    runs = [torch.load(folder / "model_final.pth")["model"] for folder in (whole, killed)]
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name
    assert len(list(killed.glob("model_0*.pth"))) == 2


def test_a_folder_is_of_one_training(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = ("--config-file", config_file, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 8)
    code, printed = train_net(tmp_path, *base)
    assert code == 0, printed
    record = json.loads((out / "training.json").read_text())
    assert record["facts"]["SOLVER.BASE_LR"] == 0.05 and len(record["facts"]["data"]) == 64
    assert set(record["wrote"]) == {"model_0000003.pth", "model_final.pth"}
    before = (out / "config.yaml").read_bytes()

    code, printed = train_net(tmp_path, *base)
    assert code == 1 and "holds an earlier training" in printed and "--overwrite" in printed
    code, printed = train_net(tmp_path, "--resume", *base, "SOLVER.BASE_LR", 0.1, "SEED", 7)
    assert code == 1 and "another run: SEED: 1 -> 7; SOLVER.BASE_LR: 0.05 -> 0.1. " in printed
    assert (out / "config.yaml").read_bytes() == before
    Path(tmp_path / "images/1.png").write_bytes((tmp_path / "images/2.png").read_bytes())
    code, printed = train_net(tmp_path, "--resume", *base)
    assert code == 1 and "another run: data: " in printed and "Traceback" not in printed
    code, printed = train_net(tmp_path, "--resume", "--changed", *base)
    assert code == 0 and "Goes on with another data" in printed

    (out / "model_0000099.pth").write_bytes(b"mine")
    code, printed = train_net(tmp_path, "--overwrite", *base)
    assert code == 1 and "model_0000099.pth, which no record lists" in printed
    (out / "model_0000099.pth").unlink()
    code, printed = train_net(tmp_path, "--overwrite", *base, "SOLVER.MAX_ITER", 2)
    assert code == 0, printed
    assert {path.name for path in out.glob("model_*")} == {"model_final.pth"}


@pytest.mark.parametrize("kind", ["sem_seg_of_another_world", None])
def test_an_evaluator_that_is_not_there_is_told_before_the_start(tmp_path: Path, kind) -> None:
    register_toy_data(tmp_path)
    MetadataCatalog.get(NAME).evaluator_type = "sem_seg"
    check_inputs(toy_config(tmp_path, "DATASETS.TEST", (NAME,)), train=True)
    MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(stuff_classes=CLASSES, vocabulary=CLASSES, evaluator_type=kind)
    with pytest.raises(ValueError, match="has evaluator_type"):
        check_inputs(toy_config(tmp_path, "DATASETS.TEST", (NAME,)), train=True)


@pytest.mark.parametrize("options", [(), ("--eval-only", "MODEL.WEIGHTS", "{config}")])
def test_two_runs_do_not_share_a_folder(config_file: Path, tmp_path: Path, options) -> None:
    options = [str(config_file) if option == "{config}" else option for option in options]
    with RunFolder(tmp_path / "out", "training").held():
        code, printed = train_net(tmp_path, "--config-file", config_file, *options)
    assert code == 1 and "another run works in it" in printed and "Traceback" not in printed


def test_a_full_disk_ends_a_training_that_can_go_on(config_file, tmp_path, monkeypatch) -> None:
    def full(self, name, **_):
        raise CATSegError(f"{name}.pth: cannot be written.")

    arguments = ("--config-file", config_file, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 4)
    with monkeypatch.context() as patch:
        patch.setattr(CATSegCheckpointer, "save", full)
        code, printed = train_net(tmp_path, *arguments)
    assert code == 1 and "Traceback" not in printed
    assert "pth: cannot be written. What was saved before is whole: go on by --resume" in printed
    code, printed = train_net(tmp_path, "--resume", *arguments)
    assert code == 0, printed


@pytest.mark.parametrize(
    ("number", "ranks"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGHUP, 1), (signal.SIGTERM, 2)],
)
def test_a_signal_ends_a_training_with_a_checkpoint(
    config_file: Path, tmp_path: Path, number: signal.Signals, ranks: int
) -> None:
    options = ("--num-gpus", ranks, "SOLVER.MAX_ITER", 100_000, "SOLVER.CHECKPOINT_PERIOD", 99_999)
    (tmp_path / "output.txt").touch()
    process = start(tmp_path, "--config-file", config_file, *options)
    while process.is_alive() and "eta: " not in (tmp_path / "output.txt").read_text():
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(60)
    printed = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 128 + number, printed
    (checkpoint,) = (tmp_path / "out").glob("model_*.pth")
    assert f"Stopped by {number.name} after iteration {int(checkpoint.stem[6:])}" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--config-file", "none.yaml"), "none.yaml does not exist"),
        ((), "--config-file is missing"),
        (("{config}", "SOLVER.BASE_RATE", 1), "BASE_RATE"),
        (("{config}", "SOLVER.OPTIMIZER", "LION"), "SOLVER.OPTIMIZER is 'LION'"),
        (("{config}", "--eval-only"), "MODEL.WEIGHTS is empty"),
        (("{config}", "--eval-only", "--resume"), "MODEL.WEIGHTS is empty"),
        (("{config}", "MODEL.WEIGHTS", "none.pth"), "none.pth does not exist"),
        (("{config}", "MODEL.WEIGHTS", "{config_path}"), "config.yaml"),
        (("{config}", "DATASETS.TRAIN", "('coco',)"), "names 'coco', which is not registered"),
        (
            ("{config}", "MODEL.SEM_SEG_HEAD.TRAIN_CLASS_JSON", "datasets/voc20.json"),
            "has 20 names, but own_data has 2 classes",
        ),
        (("{config}", "DATASETS.TRAIN", "()"), "DATASETS.TRAIN is empty"),
        (("{config}", "TEST.AUG.ENABLED", True), "TEST.AUG.ENABLED is True"),
        (("{config}", "--num-gpus=0"), "--num-gpus is 0"),
        (("{config}", "OUTPUT_DIR", "/proc/none"), "OUTPUT_DIR /proc/none"),
        (("{config}", "--benchmark", "ade150"), "ADEChallengeData2016"),
        (("{config}", "--benchmark", "pc59,ade"), "'ade' is unknown; expected one or several of"),
    ],
)
def test_what_is_missing_is_told_in_one_sentence(
    config_file: Path, tmp_path: Path, arguments: tuple[object, ...], sentence: str
) -> None:
    filled: list[object] = []
    for argument in arguments:
        if argument == "{config}":
            filled += ["--config-file", config_file]
        else:
            filled.append(config_file if argument == "{config_path}" else argument)
    # Flags come before the options.
    filled.sort(key=lambda argument: argument not in ("--eval-only", "--resume", "--num-gpus=0"))
    code, printed = train_net(tmp_path, *filled)
    assert code == 1
    assert "Traceback" not in printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("train_net.py: ") and sentence in last

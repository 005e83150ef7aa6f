"""Two processes on the CPU, started in each of the three ways, train as one process does."""

import argparse
import multiprocessing
import os
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from cat_seg.errors import CATSegError
from cat_seg.plugin.engine import Trainer
from cat_seg.plugin.engine.launch import DistributedContext, find_context, first_host, launch
from tests.plugin.engine.toy import register_toy_data, toy_config

PLAIN = ("INPUT.CROP.ENABLED", False, "INPUT.COLOR_AUG_SSD", False)
PLAIN += ("INPUT.MIN_SIZE_TRAIN", (16,), "INPUT.RANDOM_FLIP", "none")


class OneStep(Trainer):
    """Keeps the gradients of the first step and the loss of every one."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.gradients: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []

    def run_step(self) -> None:
        super().run_step()
        self.losses.append(float(self.storage.latest().get("total_loss", (0.0,))[0]))
        if not self.gradients:
            self.gradients = {
                name.removeprefix("module."): parameter.grad.clone()
                for name, parameter in self.model.named_parameters()
                if parameter.grad is not None
            }


def train(args: argparse.Namespace) -> None:
    """Train on this process, and let the first one write what it found."""
    torch.set_num_threads(1)
    register_toy_data(args.data)
    seed_all_rng(comm.get_rank())
    cfg = toy_config(args.output, *args.opts)
    trainer = OneStep(cfg)
    getattr(trainer.model, "module", trainer.model).dropout = args.dropout
    if args.resume:
        trainer.resume_or_load()
    trainer.train()
    if comm.is_main_process():
        found = {
            "processes": comm.get_world_size(),
            "gradients": trainer.gradients,
            "losses": trainer.losses,
            "weights": getattr(trainer.model, "module", trainer.model).state_dict(),
        }
        torch.save(found, args.output / "found.pt")


def arguments(data: Path, output: Path, *opts: object, **more: object) -> argparse.Namespace:
    output.mkdir(exist_ok=True)
    defaults = {"resume": False, "dropout": 0.0, "num_gpus": 1, "num_machines": 1}
    defaults |= {"machine_rank": 0, "dist_url": "auto", "data": data, "output": output}
    return argparse.Namespace(**defaults | {"opts": opts} | more)


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def torchrun_environment(rank: int, port: str) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def slurm_environment(rank: int, port: str) -> dict[str, str]:
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NTASKS": "2",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_NODELIST": "localhost",
        "MASTER_PORT": port,
    }


def _start(environment: dict[str, str], args: argparse.Namespace) -> None:
    os.environ.update(environment)
    launch(train, args)


def run_two(start: str, args: argparse.Namespace) -> dict:
    """Train on two processes."""
    if start == "detectron2":
        args.num_gpus = 2
        fork = partial(torch.multiprocessing.start_processes, start_method="fork")  # fast
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.multiprocessing, "start_processes", fork)
            launch(train, args)
    else:
        environment = {"torchrun": torchrun_environment, "slurm": slurm_environment}[start]
        port = free_port()
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(target=_start, args=(environment(rank, port), args))
            for rank in range(2)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0, 0]
    return torch.load(args.output / "found.pt")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("one")
    threads = torch.get_num_threads()
    train(arguments(folder, folder, *PLAIN))
    torch.set_num_threads(threads)
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("start", ["torchrun", "slurm", "detectron2"])
def test_two_batches_of_one_equal_one_batch_of_two(
    one_process: dict, tmp_path: Path, start: str
) -> None:
    two = run_two(start, arguments(tmp_path, tmp_path / "two", *PLAIN))
    assert (one_process["processes"], two["processes"]) == (1, 2)
    assert one_process["gradients"].keys() == two["gradients"].keys()
    for name, gradient in one_process["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, msg=name)
    for name, weight in one_process["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, msg=name)
    assert two["losses"] == pytest.approx(one_process["losses"], rel=1e-5)


def test_accumulation_on_two_processes(one_process: dict, tmp_path: Path) -> None:
    args = arguments(
        tmp_path, tmp_path / "two", *PLAIN, "SOLVER.ACCUMULATE_STEPS", 2, "SOLVER.MAX_ITER", 5
    )
    two = run_two("torchrun", args)
    single = arguments(tmp_path, tmp_path / "one", *PLAIN, "SOLVER.IMS_PER_BATCH", 4)
    single.opts += ("SOLVER.MAX_ITER", 5)
    train(single)
    one = torch.load(single.output / "found.pt")
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, msg=name)


def test_each_process_resumes_with_its_own_random_state(tmp_path: Path) -> None:
    whole = run_two("torchrun", arguments(tmp_path, tmp_path / "whole", dropout=0.5))
    output = tmp_path / "killed"
    args = arguments(tmp_path, output, dropout=0.5)
    run_two("torchrun", args)
    (output / "model_final.pth").unlink()  # as if killed after the eighth step
    (output / "last_checkpoint").write_text("model_0000007.pth")
    args.resume = True
    resumed = run_two("torchrun", args)
    assert resumed["losses"] == whole["losses"][8:]


def test_another_number_of_processes_goes_on_in_the_data(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run_two("torchrun", arguments(tmp_path, output, "SOLVER.MAX_ITER", 4))
    train(arguments(tmp_path, output, resume=True))
    assert len(torch.load(output / "found.pt")["losses"]) == 6


def test_contexts() -> None:
    assert find_context({}) is None
    assert find_context(torchrun_environment(1, "5")) == DistributedContext(
        1, 2, 1, 2, "127.0.0.1", 5
    )
    assert find_context(slurm_environment(1, "5")) == DistributedContext(1, 2, 1, 2, "localhost", 5)
    big = slurm_environment(5, "") | {"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}
    big |= {"SLURM_LOCALID": "1", "SLURM_NODELIST": "gpu[03,05]"}
    assert find_context(big) == DistributedContext(5, 8, 1, 4, "gpu03", 20007)
    step = big | {"SLURM_STEP_NUM_TASKS": "1"}  # a single task of a larger job
    assert find_context(step) is None
    with pytest.raises(CATSegError, match="variable SLURM_NTASKS is 'x'; expected a whole number"):
        find_context(big | {"SLURM_NTASKS": "x"})
    with pytest.raises(ValueError, match="8 tasks on 3 nodes"):
        find_context(big | {"SLURM_NNODES": "3"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "abc"),
        ("WORLD_SIZE", "0"),
        ("RANK", None),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("LOCAL_RANK", ""),
        ("LOCAL_RANK", "1" * 5000),
        ("LOCAL_WORLD_SIZE", "3"),
        ("MASTER_PORT", "70000"),
    ],
)
def test_impossible_variables_are_named(name: str, value: str | None) -> None:
    environment = torchrun_environment(1, "5")
    environment.pop(name, None)
    with pytest.raises(CATSegError, match=f"variable {name} is "):
        find_context(environment if value is None else environment | {name: value})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu[03-05,9],login", "gpu03"),
        ("node-1,node-2", "node-1"),
        ("localhost", "localhost"),
        ("n[1-2]-ib,n7", "n1-ib"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_node_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first

"""Starting one process or many: detectron2's launcher, `torchrun`, or SLURM's `srun`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from detectron2.engine import launch as launch_detectron2
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing import ProcessExitedException

from cat_seg.errors import CATSegError
from cat_seg.utils.signals import give_signals_back, take_signals
from cat_seg.utils.text import printable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DistributedContext:
    """Where this process stands among those of a job that something else has started."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int  # processes on this machine
    address: str  # of rank 0
    port: int


def launch(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run `main(args)` on every process.

    Processes that `torchrun` or `srun` started join each other; else detectron2's launcher starts
    --num-gpus of them on each of --num-machines. Without a GPU they talk through gloo.
    """
    context = find_context(os.environ)
    if args.num_gpus < 1 or args.num_machines < 1:
        raise CATSegError(
            f"--num-gpus is {args.num_gpus} and --num-machines {args.num_machines}; expected the "
            "number of processes, at least 1, on CPU too."
        )
    if context is None:
        several = args.num_gpus * args.num_machines > 1
        with _processes_of_ours() if several else contextlib.nullcontext():
            launch_detectron2(
                _one_of_several if several else main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args) if several else (args,),
            )
        return
    join(context)
    try:
        main(args)
    finally:
        leave()


def _one_of_several(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run `main(args)` in a process of its own; of an exception, its parent would have the text."""
    try:
        main(args)
    except CATSegError as error:
        print(f"Process {comm.get_rank()}: {printable(str(error))}", file=sys.stderr, flush=True)
        sys.exit(1)


@contextlib.contextmanager
def _processes_of_ours() -> Iterator[None]:
    """Pass signals on to the processes that are started in the block, and end as they end.

    Raises:
        SystemExit: with the code of the process that failed first, or 128 + the signal's number.
        CATSegError: if a process was killed, and not by us.
    """
    came: list[int] = []

    def pass_on(number: int, _: object) -> None:
        children = multiprocessing.active_children()
        if not children:  # none has been started yet, and none would hear of it later
            raise SystemExit(128 + number)
        came.append(number)
        for child in children:
            if child.pid:
                os.kill(child.pid, number)

    handlers = take_signals(pass_on)
    try:
        yield
    except ProcessExitedException as error:
        if came:
            raise SystemExit(128 + came[0]) from None
        if error.exit_code < 0:
            raise CATSegError(
                f"Process {error.error_index} was ended by {error.signal_name}, from outside; is "
                "the memory full?"
            ) from error
        raise SystemExit(error.exit_code) from None
    finally:
        give_signals_back(handlers)
    if came:
        raise SystemExit(128 + came[0])


def leave() -> None:
    """Undo `join`. The stand-in also lets go of the groups that it keeps; see there."""
    getattr(comm, "leave_process_groups", distributed.destroy_process_group)()


def find_context(environment: Mapping[str, str]) -> DistributedContext | None:
    """Read this process's context from the variables of `torchrun` or of SLURM.

    Returns:
        The context; None if neither has started several processes.

    Raises:
        CATSegError: if the variables contradict each other, or are no numbers.
    """
    if "LOCAL_RANK" in environment and "WORLD_SIZE" in environment:
        world_size = _number(environment, "WORLD_SIZE", at_least=1)
        last = world_size - 1
        return DistributedContext(
            rank=_number(environment, "RANK", at_most=last),
            world_size=world_size,
            local_rank=_number(environment, "LOCAL_RANK", at_most=last),
            local_size=_number(
                environment, "LOCAL_WORLD_SIZE", at_least=1, at_most=world_size, default=world_size
            ),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=_number(environment, "MASTER_PORT", at_most=65535, default=29500),
        )
    # Within `srun` the numbers of the step hold; the job's may be larger.
    if "SLURM_PROCID" not in environment:
        return None
    tasks = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    world_size = _number(environment, *tasks, at_least=1, default=1)
    if world_size == 1:
        return None
    nodes = ("SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    machines = _number(environment, *nodes, at_least=1, default=1)
    local_size = world_size // machines
    if world_size % machines:
        raise CATSegError(
            f"SLURM runs {world_size} tasks on {machines} nodes; expected as many on each "
            "(--ntasks-per-node)."
        )
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    # Jobs that share a machine need ports of their own.
    port = 20000 + _number(environment, "SLURM_JOB_ID", default=0) % 20000
    return DistributedContext(
        rank=_number(environment, "SLURM_PROCID", at_most=world_size - 1),
        world_size=world_size,
        local_rank=_number(environment, "SLURM_LOCALID", at_most=local_size - 1, default=0),
        local_size=local_size,
        address=environment.get("MASTER_ADDR") or first_host(hosts) or "127.0.0.1",
        port=_number(environment, "MASTER_PORT", at_most=65535, default=port),
    )


def _number(
    environment: Mapping[str, str],
    *names: str,
    at_least: int = 0,
    at_most: int | None = None,
    default: int | None = None,
) -> int:
    """Read a whole number from the first of some variables that is set and not empty.

    Raises:
        CATSegError: if it is no number, out of bounds, or missing without a default.
    """
    name = next((name for name in names if environment.get(name)), names[-1])
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if re.fullmatch("[0-9]{1,18}", text) and at_least <= int(text):
        if at_most is None or int(text) <= at_most:
            return int(text)
    bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
    came = repr(text[:20]) if text else "not set"
    scheduler, mark = ("srun", "SLURM_PROCID") if "SLURM" in name else ("torchrun", "LOCAL_RANK")
    raise CATSegError(
        f"The environment variable {name} is {came}; expected a whole number {bounds}, as "
        f"{scheduler} sets it. To start one process without it, unset {mark}."
    )


def first_host(hosts: str) -> str:
    """Return the first name of a SLURM node list: "gpu03" for "gpu[03-05,9],login"."""
    match = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", hosts)
    assert match is not None
    return "".join(part or "" for part in match.groups())


def join(context: DistributedContext) -> None:
    """Set up the process group, as detectron2's launcher does for processes of its own."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(context.local_rank)
    logger.info("Rank %d of %d joins at %s", context.rank, context.world_size, context.address)
    # By the environment, because `torchrun` has already opened the port and says so there.
    os.environ |= {"MASTER_ADDR": context.address, "MASTER_PORT": str(context.port)}
    distributed.init_process_group(
        backend="nccl" if has_gpu else "gloo", rank=context.rank, world_size=context.world_size
    )
    comm.create_local_process_group(context.local_size)
    comm.synchronize()

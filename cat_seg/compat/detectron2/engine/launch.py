"""Starting one process, or several that know each other."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..utils import comm

DEFAULT_TIMEOUT = timedelta(minutes=30)


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple = (),
    timeout: timedelta = DEFAULT_TIMEOUT,
) -> None:
    """Call `main_func(*args)` in every process; to be run once on every machine.

    Args:
        main_func: what each process does.
        num_gpus_per_machine: processes on each machine; on CPU where there is no GPU.
        num_machines: machines.
        machine_rank: index of this one.
        dist_url: where the processes meet, as in `torch.distributed`; "auto" on one machine.
        args: of `main_func`.
        timeout: of what processes do together.
    """
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    if dist_url == "auto":
        assert num_machines == 1, "several machines need a dist_url that all of them know"
        with socket.socket() as probe:
            probe.bind(("", 0))
            dist_url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    mp.start_processes(
        _join,
        nprocs=num_gpus_per_machine,
        args=(main_func, world_size, num_gpus_per_machine, machine_rank, dist_url, args, timeout),
    )


def _join(
    local_rank: int,
    main_func: Callable[..., Any],
    world_size: int,
    local_size: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
    timeout: timedelta,
) -> None:
    has_gpu = torch.cuda.is_available()
    assert not has_gpu or local_size <= torch.cuda.device_count(), (
        f"{local_size} processes were asked for, but there are {torch.cuda.device_count()} GPUs"
    )
    try:
        dist.init_process_group(
            backend="NCCL" if has_gpu else "GLOO",
            init_method=dist_url,
            world_size=world_size,
            rank=machine_rank * local_size + local_rank,
            timeout=timeout,
        )
    except Exception:
        logging.getLogger(__name__).error(f"Process group URL: {dist_url}")
        raise
    if has_gpu:
        torch.cuda.set_device(local_rank)
    comm.synchronize()
    try:
        main_func(*args)
    finally:
        comm.leave_process_groups()

"""Processes of a distributed run: who they are, and how Python objects pass between them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def get_world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if _distributed() else 1


def get_rank() -> int:
    """Return the index of this process among all."""
    return dist.get_rank() if _distributed() else 0


def create_local_process_group(num_workers_per_machine: int) -> None:
    """Check that each machine has as many processes; nothing here asks for groups of them."""
    world = get_world_size()
    assert world % num_workers_per_machine == 0, (world, num_workers_per_machine)


def leave_process_groups() -> None:
    """Let go of all groups: threads of gloo that outlive the interpreter abort the process."""
    _object_group.cache_clear()
    dist.destroy_process_group()


def is_main_process() -> bool:
    """Tell whether this is the process that logs and writes."""
    return get_rank() == 0


def synchronize() -> None:
    """Wait until all processes are here."""
    if get_world_size() == 1:
        return
    if dist.get_backend() == dist.Backend.NCCL:
        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


@functools.lru_cache
def _object_group() -> Any:
    """Return a group of all processes that passes objects without a GPU."""
    on_cpu = dist.get_backend() != dist.Backend.NCCL
    return dist.group.WORLD if on_cpu else dist.new_group(backend="gloo")


def all_gather(data: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return what every process has given, in the order of ranks."""
    if get_world_size() == 1:
        return [data]
    group = group or _object_group()
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, data, group=group)
    return gathered


def gather(data: Any, dst: int = 0, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return what every process has given to process `dst`, and an empty list to the others."""
    if get_world_size() == 1:
        return [data]
    group = group or _object_group()
    here = dist.get_rank(group) == dst
    gathered: list[Any] = [None] * dist.get_world_size(group) if here else []
    dist.gather_object(data, gathered if here else None, dst=dst, group=group)
    return gathered


def shared_random_seed() -> int:
    """Return a random seed that all processes agree on. All must call this."""
    return all_gather(np.random.randint(2**31))[0]

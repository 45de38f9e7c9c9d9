"""The processes (ranks) of a training run: one per device, started by a launcher, or this process alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from pipeline.core.hardware import GPU_UNUSED, gpus, torch_device
from pipeline.core.progress import log
from pipeline.grpo.policy.rendezvous import MEETING_FILE

ItemT = TypeVar("ItemT")


def prepare_environment() -> None:
    """Set the environment variables of a single rank if no launcher did, and DeepSpeed's accelerator without a GPU.

    Call it before `pipeline.grpo.policy.engine` is imported, because DeepSpeed chooses its accelerator on import.
    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if "RANK" not in os.environ:
        os.environ |= alone
    if not on_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start(timeout: timedelta) -> None:
    """Start the process group that the environment describes.

    A single rank opens no port, and the ranks of one machine (`rpt train --ranks`) open ports only on loopback. Ranks
    on several machines open ports on all interfaces, so their network must be trusted.
    """
    backend = "nccl" if on_gpu() else "gloo"
    if on_gpu():
        torch.cuda.set_device(device())
    elif gpus() and os.environ["RANK"] == "0":
        log(f"train        {GPU_UNUSED}")
    if os.environ["WORLD_SIZE"] == "1":
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    elif file := os.environ.get(MEETING_FILE):
        world = int(os.environ["WORLD_SIZE"])
        store = dist.FileStore(file, world)
        dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=world, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)


def rank() -> int:
    """Return the number of this process."""
    return dist.get_rank()


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size()


def on_gpu() -> bool:
    """Return True if ranks compute on GPUs."""
    return torch_device() == "cuda"


def device() -> torch.device:
    """Return the device of this process."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu() else torch.device("cpu")


def shard(items: Sequence[ItemT]) -> list[ItemT]:
    """Return this rank's share of a sequence that all ranks hold: every world_size-th item."""
    return list(items[rank() :: world_size()])


def owns_item(index: int) -> bool:
    """Return True if this rank's share holds item `index` of the sequence."""
    return index % world_size() == rank()


def all_reduce_sum(*values: float) -> list[float]:
    """Return the sum over ranks of each value. Every rank must call it."""
    sums = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def all_reduce_max(value: int) -> int:
    """Return the maximum over ranks. Every rank must call it."""
    largest = torch.tensor(value, device=device())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest.item())


def all_gather(items: Sequence[ItemT]) -> list[ItemT]:
    """Undo `shard`: return all ranks' items in the order of the original sequence. Every rank must call it."""
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, list(items))
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier(device_ids=[device().index] if on_gpu() else None)

"""The processes of a training run: one a device, started by a launcher, or this one alone."""

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
    """What a launcher would have set, where there was none; and DeepSpeed's accelerator where there is no GPU.

    Must come before `pipeline.grpo.policy.engine` is imported: DeepSpeed chooses then.
    """
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if "RANK" not in os.environ:
        os.environ |= alone
    if not on_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start(timeout: timedelta) -> None:
    """Start the process group, as the environment says.

    A rank alone opens no port, and those of one machine (`rpt train --ranks`) none but on loopback. Those of several
    machines open ports on all interfaces, for whom their network must be their own.
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
    """This process's number."""
    return dist.get_rank()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size()


def on_gpu() -> bool:
    """Whether ranks compute on GPUs."""
    return torch_device() == "cuda"


def device() -> torch.device:
    """This process's device."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu() else torch.device("cpu")


def shard(items: Sequence[ItemT]) -> list[ItemT]:
    """This rank's share of a sequence that all ranks hold: every world_size-th item."""
    return list(items[rank() :: world_size()])


def owns_item(index: int) -> bool:
    """Whether this rank's share holds item `index` of the sequence."""
    return index % world_size() == rank()


def all_reduce_sum(*values: float) -> list[float]:
    """Sums over ranks. Every rank must call it."""
    sums = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def all_reduce_max(value: int) -> int:
    """The maximum over ranks. Every rank must call it."""
    most = torch.tensor(value, device=device())
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most.item())


def all_gather(items: Sequence[ItemT]) -> list[ItemT]:
    """Undo `shard`: all ranks' items in the order of the sequence they were shared from. Every rank must call it."""
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, list(items))
    return [part[i] for i in range(max(map(len, parts))) for part in parts if i < len(part)]


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier(device_ids=[device().index] if on_gpu() else None)

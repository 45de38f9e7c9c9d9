"""What ranks tell each other goes by way of the GPU, where they have one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from pipeline.grpo import ranks
from tests.gpu.simulated import SimulatedGpu

pytestmark = pytest.mark.filterwarnings(r"error:barrier\(\)")


@pytest.fixture
def one_rank(gpu: SimulatedGpu | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    ranks.start(timedelta(minutes=1))
    yield
    dist.destroy_process_group()


def test_sums_maxima_and_objects(one_rank: None) -> None:
    assert ranks.on_gpu() and ranks.device() == torch.device("cuda", 0)
    assert ranks.total(0.1, 3) == [0.1, 3.0]
    assert ranks.largest(7) == 7
    things = [("a", 1.5), ("b", [None])]
    assert ranks.gathered(ranks.share(things)) == things
    assert ranks.gathered([]) == []
    ranks.barrier()


def test_tensors_of_the_host_are_not_taken(one_rank: None) -> None:
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        dist.all_reduce(torch.ones(1))

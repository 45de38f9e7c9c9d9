"""The pretended GPU refuses what a GPU refuses, and computes what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.gpu.simulated import SimulatedGpu, simulated_gpu


@pytest.fixture
def simulated() -> Iterator[SimulatedGpu]:
    with simulated_gpu() as gpu:
        yield gpu


def there(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel()), device="cuda").view(shape)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda: there(3) + torch.ones(3),
        lambda: torch.ones(3) + there(3).sum(),
        lambda: torch.cat([there(3), torch.ones(3)]),
        lambda: torch.where(torch.ones(3, dtype=torch.bool), there(3), 0.0),
        lambda: there(2, 3).gather(1, torch.zeros(2, 1, dtype=torch.long)),
        lambda: there(3).index_copy_(0, torch.tensor([1]), there(1)),
        lambda: torch.ones(3)[there(2).long()],
        lambda: nn.Linear(3, 3)(there(3)),
        lambda: nn.Embedding(4, 3).to("cuda")(torch.tensor([1])),
        lambda: there(3).masked_fill(torch.zeros(3, dtype=torch.bool), 0.0),
    ],
)
def test_tensors_of_two_devices_do_not_mix(mixed: Callable[[], object], simulated: SimulatedGpu) -> None:
    with pytest.raises(RuntimeError, match=r"same device|indices should be"):
        mixed()


def test_what_may_be_on_the_host(simulated: SimulatedGpu) -> None:
    a = there(4)
    assert (a + torch.tensor(1.0)).tolist() == [1, 2, 3, 4]
    assert a[torch.tensor([2, 0])].tolist() == a[[2, 0]].tolist() == [2, 0]
    a[torch.tensor([True, False, False, True])] = 9.0
    a[1] = torch.tensor(7.0)
    assert a.tolist() == [9, 7, 2, 9] and a.cpu().numpy().sum() == 27
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        a.numpy()
    with pytest.raises(NotImplementedError, match="CUDA"):
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*[there(1, 1, 2, 8)] * 3)


def test_what_the_host_waits_for(simulated: SimulatedGpu) -> None:
    a = there(4)
    b = (a * 2).sum() + a.max()
    assert simulated.syncs == []
    waits: list[Callable[[], object]] = [
        b.item, a.cpu, a.tolist, lambda: a[a > 1], a.nonzero, lambda: bool((a > 1).all()), torch.cuda.synchronize
    ]  # fmt: skip
    for count, wait in enumerate(waits, start=1):
        wait()
        assert len(simulated.syncs) == count
        assert __file__ in simulated.syncs[-1]


def test_memory_of_the_host_must_be_waited_for(simulated: SimulatedGpu) -> None:
    a, arrived = there(3), torch.cuda.Event()
    early = a.to("cpu", non_blocking=True)
    arrived.record()
    late = (a + 1).to("cpu", non_blocking=True)
    assert early.isnan().all() and late.isnan().all()
    arrived.synchronize()
    assert early.tolist() == [0, 1, 2] and late.isnan().all()
    assert simulated.syncs == []
    source = torch.ones(3).pin_memory()
    source.to("cuda", non_blocking=True)
    source.zero_()
    with pytest.raises(AssertionError, match="pinned memory was written to"):
        torch.cuda.synchronize()


def test_gradients_and_tied_weights(simulated: SimulatedGpu) -> None:
    torch.manual_seed(0)
    plain, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)), torch.randn(2, 3)
    plain[2].weight = plain[0].weight
    plain(x).pow(2).sum().backward()
    expected = plain[0].weight.grad
    plain.zero_grad()
    moved = plain.to("cuda")
    assert moved[0].weight is moved[2].weight and moved[0].weight.device.type == "cuda"
    optimizer = torch.optim.AdamW(moved.parameters(), lr=0.1)
    moved(x.to("cuda")).pow(2).sum().backward()
    torch.testing.assert_close(moved[0].weight.grad.cpu(), expected)
    before = moved[0].weight.detach().cpu()
    optimizer.step()
    assert not torch.equal(moved[0].weight.detach().cpu(), before)


def test_a_captured_graph_is_replayed_on_its_own_tensors(simulated: SimulatedGpu) -> None:
    x, count, factor = there(3), torch.zeros(1, device="cuda"), 2.0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        count += 1
        y = x * factor + count
        z = y.view(3, 1)[1:]
    assert count.item() == 0, "a capture computes nothing"
    assert y.isnan().all()
    factor = 5.0  # numbers of the host are those of the capture
    x.copy_(torch.tensor([1.0, 2.0, 3.0]))
    graph.replay()
    assert (count.item(), y.tolist(), z.flatten().tolist()) == (1, [3, 5, 7], [5, 7])
    graph.replay()
    assert (count.item(), y.tolist()) == (2, [4, 6, 8])


@pytest.mark.parametrize(
    "forbidden",
    [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.copy_(torch.ones(3)), lambda x: x[torch.tensor([1])]],
)
def test_a_capture_cannot_wait_or_copy_from_the_host(
    forbidden: Callable[[Tensor], object], simulated: SimulatedGpu
) -> None:
    x = there(3)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"), torch.cuda.graph(
        torch.cuda.CUDAGraph()
    ):  # fmt: skip
        forbidden(x)

"""An update on a GPU, ranks and all, is the update on the CPU. In DeepSpeed's place stands what it does on one rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.grpo import ranks

ranks.prepare_environment()

from pipeline.grpo import engine as ds  # noqa: E402
from pipeline.grpo.batch import micro_batches, text_batches  # noqa: E402
from pipeline.grpo.logprobs import PolicyLogprobs  # noqa: E402
from pipeline.grpo.loss import LOSSES, Bounds  # noqa: E402
from pipeline.grpo.objective import Objective  # noqa: E402
from pipeline.grpo.types import Batch, Response  # noqa: E402
from tests.gpu.simulated import SimulatedGpu  # noqa: E402
from tests.gpu.test_ranks import one_rank  # noqa: E402, F401
from tests.grpo.models import TEMPERATURE, some_groups, tiny  # noqa: E402
from tests.grpo.test_sampler import sampler_of  # noqa: E402

EVERYTHING = Objective(
    LOSSES["grpo"], Bounds(0.2, 0.2), TEMPERATURE, 8, kl=0.3, entropy=0.1, top_entropy=0.5, next_token=0.2
)
TEXTS = [list(range(4, 4 + length)) for length in (9, 5, 12)]


class OneRank:
    """The calls that `update` makes of a DeepSpeed engine."""

    def __init__(self, device: str) -> None:
        self.module = PolicyLogprobs(tiny().to(device).train())
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=9.0)
        self.device = self.module.model.device
        self.norm = torch.zeros(())

    def __call__(self, *args: Any) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.module(*args)
        return found

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def get_global_grad_norm(self) -> Tensor:
        return self.norm


def reference_on(device: str) -> ds.Reference:
    policy = PolicyLogprobs(tiny(seed=1).to(device))

    @torch.no_grad()
    def logprobs(batch: Batch, temperature: float) -> Tensor:
        logprobs_RT: Tensor = policy(batch, temperature)[0]
        return logprobs_RT

    return logprobs


@pytest.mark.usefixtures("one_rank")
def test_an_update_with_everything() -> None:
    updates, weights = {}, {}
    for device in ("cpu", "cuda"):
        engine, batches = OneRank(device), micro_batches(some_groups(5, 3), 60)
        assert len(batches) > 1

        found = ds.update(
            engine, batches, EVERYTHING, 1e-2, text=text_batches(TEXTS, 30), reference=reference_on(device)
        )
        updates[device] = found.metrics()
        weights[device] = {name: tensor.detach().cpu() for name, tensor in engine.module.named_parameters()}
    assert updates["cuda"] == pytest.approx(updates["cpu"], rel=1e-3)
    assert updates["cuda"]["loss"] and updates["cuda"]["loss/kl"] > 0
    for name, expected in weights["cpu"].items():
        torch.testing.assert_close(weights["cuda"][name], expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.usefixtures("one_rank")
def test_sampler_and_trainer_agree_there() -> None:
    engine, sampler, prompt = OneRank("cuda"), sampler_of(tiny().to("cuda")), list(range(3, 12))
    assert ds.verify(engine, sampler.model, prompt, TEMPERATURE) < 1e-4
    (response,) = sampler.sample([prompt], 1, TEMPERATURE, 8, [0])
    assert isinstance(response, Response)
    assert ds.sampler_gap(engine, response, prompt, TEMPERATURE) < 1e-3
    assert {name for name, _ in ds.gathered_weights(engine)} == set(dict(sampler.model.named_parameters()))


@pytest.mark.usefixtures("one_rank")
def test_of_a_micro_batch_the_host_reads_masks_and_nothing_else(gpu: SimulatedGpu | None) -> None:
    if gpu is None:
        pytest.skip("waits are counted on the pretended GPU")
    objective, waits = replace(EVERYTHING, top_entropy=1.0), []
    for count in (2, 4):
        engine, batches = OneRank("cuda"), micro_batches(some_groups(5, 3), 40)[:count]
        before = len(gpu.syncs)
        ds.update(engine, batches, objective, 1e-2)
        waits.append(len(gpu.syncs) - before)
    assert waits[1] - waits[0] == 3 * 2, "two masks and the place of the targets, of two micro-batches more"

"""Decoding on a GPU by replaying a recorded step is what decoding on the CPU step by step is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.grpo import recorded_decoding
from pipeline.grpo.recorded_decoding import Recorded
from pipeline.grpo.sampler import Sampler
from tests.gpu.simulated import SimulatedGpu
from tests.grpo.models import tiny
from tests.grpo.test_sampler import TOKENIZER, sampler_of, seeds_of, some_prompts


@pytest.fixture
def recorded_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows when a step's Python is run: once to run it and once to record it, not in a replay."""
    steps: list[int] = []
    plain = Recorded._step

    def counted(rows: Recorded) -> None:
        steps.append(1)
        plain(rows)

    monkeypatch.setattr(Recorded, "_step", counted)
    return steps


@pytest.mark.filterwarnings("error:decoding runs step by step")
@pytest.mark.parametrize("segment", [1, 2, 7, 64])
def test_segments_of_any_length(
    monkeypatch: pytest.MonkeyPatch, segment: int, recorded_steps: list[int], gpu: SimulatedGpu | None
) -> None:
    monkeypatch.setattr(recorded_decoding, "SEGMENT", segment)
    prompts, size, room = some_prompts(6), 3, 40
    expected = sampler_of(tiny()).sample(prompts, size, 0.7, room, seeds_of(prompts, size))
    lengths = {len(response.ids) for response in expected}
    assert len(lengths) > 5 and room in lengths, "rows end at different times, some never"
    found = sampler_of(tiny().to("cuda")).sample(prompts, size, 0.7, room, seeds_of(prompts, size))
    assert [(a.ids, a.finished, a.text) for a in found] == [(a.ids, a.finished, a.text) for a in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)
    segments = -(-(room - 1) // segment)
    alone = (room - 1) % segment == 1 or segment == 1  # a last step alone needs no recording
    assert len(recorded_steps) == (segments if segment == 1 else 2 * segments - alone)


def test_the_host_looks_on(gpu: SimulatedGpu | None) -> None:
    """Nothing of a step asks the host; whether all have ended is asked every few steps."""
    if gpu is None:
        pytest.skip("counts what a pretended GPU notes")
    prompts, room = some_prompts(3), 60
    sampler = Sampler(tiny().to("cuda"), TOKENIZER, ())
    sampler.sample(prompts, 2, 1.0, 2, seeds_of(prompts, 2))
    before = len(gpu.syncs)
    sampler.sample(prompts, 2, 1.0, 2, seeds_of(prompts, 2))
    short = len(gpu.syncs) - before
    sampler.sample(prompts, 2, 1.0, room, seeds_of(prompts, 2))
    long = len(gpu.syncs) - before - short
    assert long - short <= room / recorded_decoding._LOOK


def test_decoding_stops_when_all_have_ended(monkeypatch: pytest.MonkeyPatch, gpu: SimulatedGpu | None) -> None:
    graphs, replays = torch.cuda.CUDAGraph, []

    class Counted(graphs):  # type: ignore[misc, valid-type]
        def replay(self) -> None:
            replays.append(1)
            super().replay()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Counted)
    prompts, many_ends = some_prompts(3), range(0, 61, 2)
    found = Sampler(tiny().to("cuda"), TOKENIZER, many_ends).sample(prompts, 2, 1.0, 60, seeds_of(prompts, 2))
    longest = max(len(response.ids) for response in found)
    assert all(response.finished for response in found) and longest < 20
    assert 0 < len(replays) < longest + recorded_decoding._LOOK


def test_one_token_needs_no_step(recorded_steps: list[int], gpu: SimulatedGpu | None) -> None:
    prompts = some_prompts(3)
    expected = sampler_of(tiny()).sample(prompts, 2, 1.0, 1, seeds_of(prompts, 2))
    found = sampler_of(tiny().to("cuda")).sample(prompts, 2, 1.0, 1, seeds_of(prompts, 2))
    assert [response.ids for response in found] == [response.ids for response in expected]
    assert not recorded_steps


def test_a_step_that_cannot_be_recorded_is_run(
    monkeypatch: pytest.MonkeyPatch, recorded_steps: list[int], gpu: SimulatedGpu | None
) -> None:
    """As of a model that asks the host something."""
    plain = Recorded._take

    def asking(rows: Recorded, logits: Any) -> None:
        plain(rows, logits)
        assert rows._last.item() >= 0

    monkeypatch.setattr(Recorded, "_take", asking)
    prompts = some_prompts(4)
    expected = sampler_of(tiny()).sample(prompts, 2, 1.0, 20, seeds_of(prompts, 2))
    with pytest.warns(UserWarning, match="step by step"):
        found = sampler_of(tiny().to("cuda")).sample(prompts, 2, 1.0, 20, seeds_of(prompts, 2))
    assert [response.ids for response in found] == [response.ids for response in expected]
    assert len(recorded_steps) == 20, "19 steps and one attempt to record"

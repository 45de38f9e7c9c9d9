"""Decoding by recorded steps, on a CPU: a recording that is replayed as a CUDA graph is stands in for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.grpo import recorded_decoding
from pipeline.grpo.decoding import Shared
from pipeline.grpo.recorded_decoding import Recorded
from pipeline.grpo.sampler import Sampler
from tests.grpo.models import EOS, tiny
from tests.grpo.test_sampler import TOKENIZER, sampler_of, seeds_of, some_prompts


class Recording(TorchDispatchMode):
    """Operations on tensors at fixed addresses, as a CUDA graph holds them.

    While it records nothing happens to tensors that were there before; a replay runs no Python of the step, and reads
    and writes the tensors of the recording. What a capture forbids, asking a tensor for its value, is an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "unique_consecutive", "is_nonzero", "equal"}, name
        for argument, tensor in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._before.setdefault(tensor.untyped_storage().data_ptr(), (tensor, tensor.clone()))
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.operations.append((func, args, kwargs, made))
        return out

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for tensor, before in self._before.values():
            tensor.copy_(before)

    def replay(self) -> None:
        """The same again."""
        for func, args, kwargs, made in self.operations:
            there = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
            new = [leaf for leaf in tree_leaves(func(*args, **kwargs)) if isinstance(leaf, Tensor)]
            for address, value in zip(made, new, strict=True):
                if address.untyped_storage().data_ptr() not in there:  # neither a view nor written in place
                    address.copy_(value)


def recorded(step: Callable[[], None]) -> Callable[[], None]:
    with Recording() as recording:
        step()
    assert len(recording.operations) > 50
    return recording.replay


def test_a_recording_behaves_as_a_graph() -> None:
    counter, total, steps = torch.zeros(1), torch.zeros(3), []

    def step() -> None:
        steps.append(1)
        counter.add_(1)
        total.add_(torch.arange(3.0) * counter)

    with Recording() as recording:
        step()
    assert counter.item() == 0 and not total.any()
    recording.replay()
    recording.replay()
    assert len(steps) == 1 and total.tolist() == [0, 3, 6]
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Recording():
        counter.item()


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2"])
@pytest.mark.parametrize("segment", [1, 2, 7, 64])
def test_recorded_steps_sample_what_steps_sample(monkeypatch: pytest.MonkeyPatch, kind: str, segment: int) -> None:
    monkeypatch.setattr(recorded_decoding, "SEGMENT", segment)
    prompts, size, room = some_prompts(6), 3, 40
    expected = sampler_of(tiny(kind)).sample(prompts, size, 0.7, room, seeds_of(prompts, size))
    lengths = {len(response.ids) for response in expected}
    assert len(lengths) > 5 and room in lengths, "rows end at different times, some never"
    sampler = Sampler(tiny(kind), TOKENIZER, {EOS}, rows=partial(Recorded, record=recorded))
    found = sampler.sample(prompts, size, 0.7, room, seeds_of(prompts, size))
    assert [response.ids for response in found] == [response.ids for response in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=2e-4)
        assert (a.finished, a.text) == (b.finished, b.text)


def test_replays_are_what_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every segment one step is run and one recorded; the others are replays."""
    monkeypatch.setattr(recorded_decoding, "SEGMENT", 10)
    prompts, steps = some_prompts(2), []
    plain = Recorded._step
    monkeypatch.setattr(Recorded, "_step", lambda rows: (steps.append(1), plain(rows))[1])
    sampler = Sampler(tiny(), TOKENIZER, (), rows=partial(Recorded, record=recorded))
    found = sampler.sample(prompts, 2, 1.0, 31, seeds_of(prompts, 2))
    assert len(steps) == 6
    unrecorded = Sampler(tiny(), TOKENIZER, (), rows=Shared)
    assert [r.ids for r in found] == [r.ids for r in unrecorded.sample(prompts, 2, 1.0, 31, seeds_of(prompts, 2))]


def test_decoding_stops_when_all_have_ended() -> None:
    prompts, replays = some_prompts(3), []

    def counted(step: Callable[[], None]) -> Callable[[], None]:
        replay = recorded(step)
        return lambda: (replays.append(1), replay())[1]

    sampler = Sampler(tiny(), TOKENIZER, range(0, 61, 2), rows=partial(Recorded, record=counted))
    found = sampler.sample(prompts, 2, 1.0, 60, seeds_of(prompts, 2))
    longest = max(len(response.ids) for response in found)
    assert all(response.finished for response in found) and longest < 20
    assert len(replays) < longest + recorded_decoding._LOOK


def test_one_token_needs_no_step() -> None:
    prompts = some_prompts(3)
    sampler = Sampler(tiny(), TOKENIZER, {EOS}, rows=partial(Recorded, record=recorded))
    expected = sampler_of(tiny()).sample(prompts, 2, 1.0, 1, seeds_of(prompts, 2))
    assert [r.ids for r in sampler.sample(prompts, 2, 1.0, 1, seeds_of(prompts, 2))] == [r.ids for r in expected]


def test_a_step_that_cannot_be_recorded_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no CUDA, nothing can."""

    class NoGraph:
        def __init__(self) -> None: ...

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", NoGraph)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    prompts = some_prompts(4)
    expected = sampler_of(tiny()).sample(prompts, 2, 1.0, 20, seeds_of(prompts, 2))
    with pytest.warns(UserWarning, match="step by step"):
        found = Sampler(tiny(), TOKENIZER, {EOS}, rows=Recorded).sample(prompts, 2, 1.0, 20, seeds_of(prompts, 2))
    assert [response.ids for response in found] == [response.ids for response in expected]

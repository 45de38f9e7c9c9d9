"""Decoding by kernels is decoding by PyTorch's operations, in a recorded step too."""

from __future__ import annotations

import pytest
import torch

from pipeline.grpo import kernel_decoder, recorded_decoding
from pipeline.grpo.drawing import draw, fastest_draw
from pipeline.grpo.kernel_decoder import Kernels, proven
from pipeline.grpo.sampler import Sampler
from tests.grpo.models import tiny
from tests.grpo.test_sampler import TOKENIZER, sampler_of, seeds_of, some_prompts


@pytest.mark.filterwarnings("error:decoding")
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_responses_are_those_of_the_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over segments between which rows leave."""
    monkeypatch.setattr(recorded_decoding, "SEGMENT", 4)
    prompts, size, room = some_prompts(4), 2, 10
    many_ends = range(0, 61, 6)
    expected = Sampler(tiny(kind), TOKENIZER, many_ends).sample(prompts, size, 1.0, room, seeds_of(prompts, size))
    assert len({len(response.ids) for response in expected}) > 2, "rows end at different times"
    sampler = Sampler(tiny(kind).to("cuda"), TOKENIZER, many_ends)
    assert isinstance(sampler._rows.args[0]._operations, Kernels)  # type: ignore[attr-defined]
    found = sampler.sample(prompts, size, 1.0, room, seeds_of(prompts, size))
    assert [(a.ids, a.finished) for a in found] == [(a.ids, a.finished) for a in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-3)


@pytest.mark.filterwarnings("error:decoding")
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", [(14, 2, 64), (4, 4, 24), (6, 1, 128)])
def test_they_are_proven(shape: tuple[int, int, int]) -> None:
    assert proven(torch.device("cuda", 0), torch.float32, *shape)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("broken", ["rotate_and_store", "attend", "swiglu"])
def test_kernels_that_are_wrong_are_not_used(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.grpo import decode_triton

    right = getattr(decode_triton, broken)
    monkeypatch.setattr(decode_triton, broken, lambda *args: right(*args) * 1.2)
    with pytest.warns(UserWarning, match="by PyTorch's operations: the kernels are wrong here: off by"):
        assert not proven(torch.device("cuda", 0), torch.float32, 4, 2, 8)
    sampler = sampler_of(tiny().to("cuda"))
    assert type(sampler._rows.args[0]._operations) is kernel_decoder.Operations  # type: ignore[attr-defined]


@pytest.mark.usefixtures("kernels")
def test_kernels_that_do_not_compile_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.grpo import decode_triton

    def fails(*_: object) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(decode_triton, "attend", fails)
    with pytest.warns(UserWarning, match="kernels are wrong here: out of resource"):
        assert not proven(torch.device("cuda", 0), torch.float32, 4, 2, 8)


@pytest.mark.filterwarnings("error:tokens are drawn")
@pytest.mark.usefixtures("kernels")
def test_draws_are_proven() -> None:
    from pipeline.grpo import drawing_triton

    gpu = torch.device("cuda", 0)
    assert fastest_draw(gpu) is drawing_triton.draw


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("part", [0, 1])
def test_draws_that_are_wrong_are_not_used(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next token, or another log-probability."""
    from pipeline.grpo import drawing_triton

    right = drawing_triton.draw
    monkeypatch.setattr(drawing_triton, "draw", lambda *args: [x + (i == part) for i, x in enumerate(right(*args))])
    with pytest.warns(UserWarning, match="drawn by PyTorch's operations: the kernels are wrong here: off by"):
        assert fastest_draw(torch.device("cuda", 0)) is draw

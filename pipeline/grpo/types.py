"""What passes between the parts of a training step.

Shape names: P prompts (one a site), G responses a prompt, R = P·G responses, C columns of contexts, T columns of
responses, V vocabulary, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Response:
    """What the policy answered to a prompt."""

    ids: tuple[int, ...]
    """Token ids as sampled [T], the end-of-sequence token included when there is one. Never decoded and re-encoded."""
    text: bytes
    """Bytes of the ids, end-of-sequence token left out."""
    finished: bool
    """It ended by itself, not for lack of room."""
    logprobs: tuple[float, ...]
    """Log-probability [T] (nats) of each id under the distribution it was sampled from."""


@dataclass(frozen=True)
class SamplingRequest:
    """What is asked of a sampler: G responses to each of P prompts."""

    prompts: Sequence[Sequence[int]]
    """[P] token ids, at least one each."""
    group_size: int
    """G"""
    temperature: float
    """0 is greedy."""
    max_new_tokens: int
    """Room for a response; one that has not ended by then is unfinished."""
    seeds: Sequence[int]
    """[P·G] of each response (`rollout_seed`), prompt by prompt."""

    def __post_init__(self) -> None:
        if len(self.seeds) != (expected := len(self.prompts) * self.group_size):
            raise ValueError(f"a seed for each response is needed: {expected}, got {len(self.seeds)}")


class ResponseSampler(Protocol):
    """What samples: `sampler.Sampler`, built in, or `vllm_sampler.VllmSampler`. Their methods are described there."""

    eos_ids: frozenset[int]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None: ...

    def sample(self, request: SamplingRequest) -> list[Response]: ...

    def direct(self, contexts: Sequence[Sequence[int]]) -> list[int]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Group:
    """The responses to one prompt, and what each is worth."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    responses: tuple[Response, ...]
    """[G]"""
    advantages: tuple[float, ...]
    """[G]"""

    @property
    def has_gradient(self) -> bool:
        """Whether any response is better or worse than the others."""
        return any(self.advantages)

    @property
    def length(self) -> int:
        """Columns its responses need."""
        return max(len(response.ids) for response in self.responses)


@dataclass(frozen=True)
class Batch:
    """One micro-batch: contexts once, then the G responses of each. Masks say what is real, never a padding id.

    A prompt's last token is the first *input* of its responses, so that every response token, the first included, is
    predicted by the column it stands in.
    """

    context_ids_PC: Tensor
    """Prompts without their last token, left-padded."""
    context_mask_PC: Tensor
    inputs_RT: Tensor
    """The prompt's last token and the response without its last, right-padded; row r belongs to context r // G."""
    targets_RT: Tensor
    """The response."""
    mask_RT: Tensor
    """True where `targets_RT` is a token of a response."""
    learned_RT: Tensor
    """Where of `mask_RT` there is something to learn: all of it, unless the objective leaves tokens out."""
    sampled_logprobs_RT: Tensor
    """Of the targets, as the sampler had them: to see whether it and the trainer agree."""
    advantages_R: Tensor
    old_logprobs_RT: Tensor | None = None
    """Of the targets, by the trainer before a step's first update; None: the update is the step's only one."""

    @property
    def group_size(self) -> int:
        """G"""
        return len(self.inputs_RT) // len(self.context_ids_PC)

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})

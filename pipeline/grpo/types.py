"""Data types that the parts of a training step exchange: requests, responses, groups, batches.

Shape names: P prompts (one per site), G responses per prompt, R = P·G responses, C columns of contexts, T columns of
responses, V vocabulary, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from pipeline.task.reward import response_bytes


@dataclass(frozen=True)
class Response:
    """A response that the policy sampled for a prompt."""

    ids: tuple[int, ...]
    """Token ids as sampled [T], the end-of-sequence token included when there is one. Never decoded and re-encoded."""
    text: bytes
    """Bytes of the ids, end-of-sequence token left out."""
    finished: bool
    """True if it ended by itself; False if it was cut at the token limit."""
    logprobs: tuple[float, ...]
    """Log-probability [T] (nats) of each id under the distribution it was sampled from."""

    @classmethod
    def of(
        cls, ids: Sequence[int], logprobs: Sequence[float], finished: bool, token_bytes: Sequence[bytes]
    ) -> Response:
        """Return the response of sampled ids, given the bytes of every token of the policy."""
        text = response_bytes(ids[:-1] if finished else ids, token_bytes)
        return cls(tuple(ids), text, finished, tuple(logprobs))


@dataclass(frozen=True)
class NextToken:
    """A policy's distribution of the next token after a context, in three figures."""

    best: int
    """Id of the most likely token."""
    entropy: float
    """Entropy over the whole vocabulary, in nats, at temperature 1."""
    logprob: float
    """Log-probability of the most likely token, in nats."""
    margin: float
    """Log-probability of the most likely token minus that of the second, in nats."""


@dataclass(frozen=True)
class SamplingRequest:
    """A request to a sampler: G responses to each of P prompts."""

    prompts: Sequence[Sequence[int]]
    """[P] Token ids, at least one each."""
    group_size: int
    """G, responses per prompt."""
    temperature: float
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: int
    """Maximum length of a response; one that has not ended by then is unfinished."""
    seeds: Sequence[int]
    """[P·G] Seed of each response (`rollout_seed`), prompt by prompt."""

    def __post_init__(self) -> None:
        if len(self.seeds) != (expected := len(self.prompts) * self.group_size):
            raise ValueError(f"expected one seed per response: {expected}, got {len(self.seeds)}")


class ResponseSampler(Protocol):
    """Interface of the samplers: the built-in `sampler.Sampler` and `vllm_sampler.VllmSampler`."""

    eos_ids: frozenset[int]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the weights, given by their `transformers` names. Every rank must call it."""

    def sample(self, request: SamplingRequest) -> list[Response]:
        """Sample the P·G responses, in the order of the request's seeds."""

    def close(self) -> None:
        """Release the sampler's resources."""


@dataclass(frozen=True)
class Group:
    """The responses to one prompt, with the advantage of each."""

    prompt: tuple[int, ...]
    """Token ids, at least one."""
    responses: tuple[Response, ...]
    """[G] Sampled responses."""
    advantages: tuple[float, ...]
    """[G] Advantage of each response."""

    @property
    def has_gradient(self) -> bool:
        """Return True if any advantage is not zero, so that the group contributes to the gradient."""
        return any(self.advantages)

    @property
    def length(self) -> int:
        """Return the length of the longest response."""
        return max(len(response.ids) for response in self.responses)


@dataclass(frozen=True)
class Batch:
    """One micro-batch: each context once, then its G responses. Masks mark the real tokens; no padding id does.

    A prompt's last token is the first *input* of its responses, so that every response token, including the first, is
    predicted by the column it stands in.
    """

    context_ids_PC: Tensor
    """Prompts without their last token, left-padded."""
    context_mask_PC: Tensor
    """True where `context_ids_PC` is a token of a context."""
    inputs_RT: Tensor
    """The prompt's last token and the response without its last, right-padded; row r belongs to context r // G."""
    targets_RT: Tensor
    """Token ids of the response."""
    mask_RT: Tensor
    """True where `targets_RT` is a token of a response."""
    loss_mask_RT: Tensor
    """True for the tokens of `mask_RT` that contribute to the loss: all, unless the objective leaves tokens out."""
    sampled_logprobs_RT: Tensor
    """Log-probabilities of the targets as the sampler reported them, to be compared with the trainer's."""
    advantages_R: Tensor
    """Advantage of each response."""
    old_logprobs_RT: Tensor | None = None
    """Log-probabilities of the targets by the trainer before the step's first update; None if there is only one."""

    @property
    def group_size(self) -> int:
        """Return G, the number of responses per context."""
        return len(self.inputs_RT) // len(self.context_ids_PC)

    def to(self, device: torch.device) -> Batch:
        """Return a copy of the batch on `device`."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in tensors.items() if t is not None})

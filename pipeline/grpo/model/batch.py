"""Assembly of groups into micro-batches of bounded size. Shape names as in `types.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from pipeline.grpo.types import Batch, Group, Response

ItemT = TypeVar("ItemT")


def micro_batches(groups: Sequence[Group], tokens: int, *, learn_unfinished: bool = True) -> list[Batch]:
    """Divide groups into micro-batches of at most `tokens` padded tokens, each context counted once per group.

    Groups of equal rewards have no gradient and must be removed by the caller. The responses of a group larger than
    `tokens` are split over several micro-batches, each of which reads the context again; a micro-batch holds at least
    one response. Groups are sorted by length to keep padding small; the order is a function of the groups alone.
    Without `learn_unfinished`, responses cut at the length limit count in their group's advantages but not in the loss
    (overlong filtering, DAPO, arXiv 2503.14476, section 3.4).

    Raises:
        ValueError: a group has no gradient.
    """
    if not all(group.has_gradient for group in groups):
        raise ValueError("groups without a gradient must be removed: they cost a forward pass and change nothing")
    parts = [part for group in groups for part in _parts(group, tokens)]
    batches: list[list[Group]] = []
    for part in sorted(parts, key=lambda part: (len(part.responses), len(part.prompt), part.length, part.prompt)):
        alike = batches and len(batches[-1][0].responses) == len(part.responses)
        if alike and _padded_tokens([*batches[-1], part]) <= tokens:
            batches[-1].append(part)
        else:
            batches.append([part])
    return [batch_of(batch, learn_unfinished=learn_unfinished) for batch in batches]


def responses_that_fit(context: int, response: int, tokens: int) -> int:
    """Return how many responses of `response` tokens fit into a micro-batch with their context, at least one."""
    return max(1, (tokens - context) // response)


def _parts(group: Group, tokens: int) -> list[Group]:
    """Split a group into as few parts as fit, with responses of similar length together."""
    if _padded_tokens([group]) <= tokens:
        return [group]
    # Longest first: the first response of each part sets how many fit beside it.
    remaining = sorted(zip(group.responses, group.advantages, strict=True), key=lambda pair: -len(pair[0].ids))
    parts = []
    while remaining:
        count = responses_that_fit(len(group.prompt), len(remaining[0][0].ids), tokens)
        responses, advantages = zip(*remaining[:count], strict=True)
        parts.append(replace(group, responses=responses, advantages=advantages))
        remaining = remaining[count:]
    return parts


def consecutive_parts(numbered: Mapping[int, ItemT], count: int, parts: int) -> list[list[ItemT]]:
    """Divide numbered items into `parts` consecutive parts of almost equal size.

    Args:
        numbered: this rank's items by their number among the items of all ranks.
        count: number of items on all ranks.
        parts: number of parts; with fewer items than parts, some parts are empty.

    Example:
        >>> consecutive_parts({0: "a", 1: "b", 4: "e"}, 5, 2)
        [['a', 'b'], ['e']]
    """
    divided: list[list[ItemT]] = [[] for _ in range(parts)]
    for number, item in numbered.items():
        divided[number * parts // count].append(item)
    return divided


def text_batches(texts: Sequence[Sequence[int]], tokens: int) -> list[Batch]:
    """Return micro-batches in which each token of a text is predicted from those before it, as in pre-training.

    Args:
        texts: token ids. The first two tokens are the prompt and are not predicted; texts without a third are skipped.
        tokens: maximum padded tokens per micro-batch, as for `micro_batches`.
    """
    return micro_batches([_as_group(text) for text in texts if len(text) > 2], tokens)


def _as_group(text: Sequence[int]) -> Group:
    ids = tuple(text[2:])
    return Group(tuple(text[:2]), (Response(ids, b"", True, (0.0,) * len(ids)),), (1.0,))


def batch_of(groups: Sequence[Group], *, learn_unfinished: bool = True) -> Batch:
    """Return the batch of groups that all have the same number of responses."""
    size = len(groups[0].responses)
    width, columns = max(len(group.prompt) for group in groups) - 1, max(group.length for group in groups)
    context_ids = np.zeros((len(groups), width), dtype=np.int64)
    context_mask = np.zeros((len(groups), width), dtype=bool)
    inputs = np.zeros((len(groups) * size, columns), dtype=np.int64)
    targets, mask = np.zeros_like(inputs), np.zeros(inputs.shape, dtype=bool)
    loss_mask = np.zeros_like(mask)
    logprobs = np.zeros(inputs.shape, dtype=np.float32)
    for p, group in enumerate(groups):
        start = width - (len(group.prompt) - 1)
        context_ids[p, start:], context_mask[p, start:] = group.prompt[:-1], True
        for row, response in enumerate(group.responses, start=p * size):
            length = len(response.ids)
            inputs[row, :length] = (group.prompt[-1], *response.ids[:-1])
            targets[row, :length], mask[row, :length], logprobs[row, :length] = response.ids, True, response.logprobs
            loss_mask[row, :length] = learn_unfinished or response.finished
    advantages = np.array([a for group in groups for a in group.advantages], dtype=np.float32)
    arrays = (context_ids, context_mask, inputs, targets, mask, loss_mask, logprobs, advantages)
    return Batch(*map(torch.from_numpy, arrays))


def idle_batch() -> Batch:
    """Return a batch without any token in the loss.

    A rank that has no micro-batches left runs it, because under ZeRO-3 the other ranks wait for it in their gathers.
    """
    one, true = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    return Batch(one, true, one, one, ~true, ~true, torch.zeros(1, 1), torch.zeros(1))


def _padded_tokens(groups: Sequence[Group]) -> int:
    widest, longest = max(len(group.prompt) for group in groups), max(group.length for group in groups)
    return len(groups) * (widest + len(groups[0].responses) * longest)

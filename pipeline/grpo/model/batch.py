"""Groups → micro-batches of bounded size. Shape names as in `types.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from pipeline.grpo.types import Batch, Group, Response

ItemT = TypeVar("ItemT")


def micro_batches(groups: Sequence[Group], tokens: int, *, learn_unfinished: bool = True) -> list[Batch]:
    """Cut groups into micro-batches of at most `tokens` padded tokens, contexts counted once a group.

    Groups of equal rewards have no gradient and must have been left out. The responses of a group larger than `tokens`
    are shared out over several micro-batches, in each of which its context is read again; one response is the least.
    Groups are ordered by length, so that little is padding; the order is a function of the groups alone. Without
    `learn_unfinished`, responses cut at the length limit are compared with but not learned from (overlong filtering,
    DAPO, arXiv 2503.14476, section 3.4).
    """
    if not all(group.has_gradient for group in groups):
        raise ValueError("groups without a gradient cost a forward pass for nothing")
    parts = [part for group in groups for part in _parts(group, tokens)]
    batches: list[list[Group]] = []
    for part in sorted(parts, key=lambda part: (len(part.responses), len(part.prompt), part.length, part.prompt)):
        alike = batches and len(batches[-1][0].responses) == len(part.responses)
        if alike and _padded_tokens([*batches[-1], part]) <= tokens:
            batches[-1].append(part)
        else:
            batches.append([part])
    return [batch_of(batch, learn_unfinished=learn_unfinished) for batch in batches]


def responses_that_fit(context: int, room: int, tokens: int) -> int:
    """How many responses of `room` tokens fit into a micro-batch with their context; one at least."""
    return max(1, (tokens - context) // room)


def _parts(group: Group, tokens: int) -> list[Group]:
    """A group that fits; of one that does not, its responses in as few parts as fit, those of like length together."""
    if _padded_tokens([group]) <= tokens:
        return [group]
    left = sorted(zip(group.responses, group.advantages, strict=True), key=lambda pair: -len(pair[0].ids))
    parts = []
    while left:
        count = responses_that_fit(len(group.prompt), len(left[0][0].ids), tokens)
        responses, advantages = zip(*left[:count], strict=True)
        parts.append(replace(group, responses=responses, advantages=advantages))
        left = left[count:]
    return parts


def consecutive_parts(numbered: Mapping[int, ItemT], count: int, parts: int) -> list[list[ItemT]]:
    """Items by the part they are in, of as many as `parts`, which are consecutive and of almost equal size.

    Args:
        numbered: some of the items, by their number among all of them: a rank holds its own, and all ranks agree.
        count: how many items there are in all.
        parts: how many parts. Of fewer items than that some parts are empty.

    Example:
        >>> consecutive_parts({0: "a", 1: "b", 4: "e"}, 5, 2)
        [['a', 'b'], ['e']]
    """
    made: list[list[ItemT]] = [[] for _ in range(parts)]
    for number, item in numbered.items():
        made[number * parts // count].append(item)
    return made


def text_batches(texts: Sequence[Sequence[int]], tokens: int) -> list[Batch]:
    """Micro-batches in which every token of a text is predicted from those before it, as in pre-training.

    Args:
        texts: token ids; the first two are only read, as a context and its end. Texts of no more are left out.
        tokens: as for `micro_batches`.
    """
    return micro_batches([_as_group(text) for text in texts if len(text) > 2], tokens)


def _as_group(text: Sequence[int]) -> Group:
    ids = tuple(text[2:])
    return Group(tuple(text[:2]), (Response(ids, b"", True, (0.0,) * len(ids)),), (1.0,))


def batch_of(groups: Sequence[Group], *, learn_unfinished: bool = True) -> Batch:
    """Tensors of groups that all have the same number of responses."""
    size = len(groups[0].responses)
    width, columns = max(len(group.prompt) for group in groups) - 1, max(group.length for group in groups)
    context_ids = np.zeros((len(groups), width), dtype=np.int64)
    context_mask = np.zeros((len(groups), width), dtype=bool)
    inputs = np.zeros((len(groups) * size, columns), dtype=np.int64)
    targets, mask = np.zeros_like(inputs), np.zeros(inputs.shape, dtype=bool)
    learned = np.zeros_like(mask)
    logprobs = np.zeros(inputs.shape, dtype=np.float32)
    for p, group in enumerate(groups):
        start = width - (len(group.prompt) - 1)
        context_ids[p, start:], context_mask[p, start:] = group.prompt[:-1], True
        for row, response in enumerate(group.responses, start=p * size):
            length = len(response.ids)
            inputs[row, :length] = (group.prompt[-1], *response.ids[:-1])
            targets[row, :length], mask[row, :length], logprobs[row, :length] = response.ids, True, response.logprobs
            learned[row, :length] = learn_unfinished or response.finished
    advantages = np.array([a for group in groups for a in group.advantages], dtype=np.float32)
    arrays = (context_ids, context_mask, inputs, targets, mask, learned, logprobs, advantages)
    return Batch(*map(torch.from_numpy, arrays))


def idle_batch() -> Batch:
    """A batch without a token to learn from: a rank that has run out runs it, for the others wait in its gathers."""
    one, true = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    return Batch(one, true, one, one, ~true, ~true, torch.zeros(1, 1), torch.zeros(1))


def _padded_tokens(groups: Sequence[Group]) -> int:
    widest, longest = max(len(group.prompt) for group in groups), max(group.length for group in groups)
    return len(groups) * (widest + len(groups[0].responses) * longest)

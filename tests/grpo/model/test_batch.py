from __future__ import annotations

import pytest
import torch

from pipeline.grpo.model.batch import batch_of, idle_batch, micro_batches
from pipeline.grpo.types import Batch, Group, Response
from tests.grpo.models import some_groups


def unpacked(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """(prompt, response, advantage) of every row, read back through the masks."""
    rows = []
    for row, mask in enumerate(batch.mask_RT):
        p = row // batch.group_size
        context = batch.context_ids_PC[p][batch.context_mask_PC[p]].tolist()
        response = batch.targets_RT[row][mask].tolist()
        inputs = batch.inputs_RT[row][mask].tolist()
        assert inputs[1:] == response[:-1], "each input is the token before its target"
        rows.append(((*context, inputs[0]), tuple(response), batch.advantages_R[row].item()))
    return rows


@pytest.mark.parametrize("tokens", [1, 100, 300, 10**6])
def test_every_response_is_in_one_micro_batch_of_bounded_size(tokens: int) -> None:
    groups = some_groups(9, 4)
    batches = micro_batches(groups, tokens)
    found = sorted(row for batch in batches for row in unpacked(batch))
    assert found == sorted((g.prompt, r.ids, a) for g in groups for r, a in zip(g.responses, g.advantages, strict=True))
    for batch in batches:
        padded = batch.context_ids_PC.numel() + batch.inputs_RT.numel()
        assert len(batch.mask_RT) == 1 or padded <= tokens
    assert len(batches) == {1: 9 * 4, 10**6: 1}.get(tokens, len(batches))


def test_a_group_that_does_not_fit_is_shared_out_by_length() -> None:
    """A context of 10 tokens and responses of 2, 9, 5, 4 and 1: by 30 tokens, 9 + 5 fit with it, then the others."""
    responses = tuple(Response((7,) * length, b"", True, (0.0,) * length) for length in (2, 9, 5, 4, 1))
    group = Group(tuple(range(10)), responses, (1.0, 2.0, 3.0, 4.0, 5.0))
    batches = micro_batches([group], 30)
    found = [batch.advantages_R.tolist() for batch in batches]
    assert found == [[2.0, 3.0], [4.0, 1.0, 5.0]]
    assert [batch.context_ids_PC.tolist() for batch in batches] == [[list(range(9))]] * 2
    assert len(micro_batches([group], 10 + 5 * 9)) == 1


def test_order_of_groups_does_not_matter() -> None:
    groups = some_groups(9, 2)
    forward, backward = micro_batches(groups, 90), micro_batches(groups[::-1], 90)
    assert len(forward) > 2
    assert [sorted(unpacked(batch)) for batch in forward] == [sorted(unpacked(batch)) for batch in backward]


def test_groups_without_gradient_are_refused() -> None:
    response = Response((3, 4), b"", True, (-1.0, -1.0))
    with pytest.raises(ValueError, match="forward pass"):
        micro_batches([Group((1, 2), (response, response), (0.0, 0.0))], 100)


def test_padding_is_told_by_masks_not_ids() -> None:
    zeros = Response((0, 0, 0), b"", False, (-1.0,) * 3)
    batch = batch_of([Group((0, 0), (zeros, Response((0,), b"", True, (-2.0,))), (1.0, -1.0))])
    assert batch.mask_RT.tolist() == [[True] * 3, [True, False, False]]
    assert batch.sampled_logprobs_RT.tolist() == [[-1.0, -1.0, -1.0], [-2.0, 0.0, 0.0]]


def test_idle_batch_has_shapes_and_no_tokens() -> None:
    batch = idle_batch()
    assert batch.group_size == 1 and not batch.mask_RT.any() and batch.context_mask_PC.all()
    assert batch.to(torch.device("cpu")).inputs_RT.shape == (1, 1)

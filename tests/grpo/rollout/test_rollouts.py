from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from pipeline.grpo.algorithm.advantage import group_std
from pipeline.grpo.rollout.rewards import RewardContext, RolloutGroup, prefix
from pipeline.grpo.rollout.rollouts import ROLLOUTS, group_advantages, rollout_rows
from pipeline.grpo.run.metrics import GroupSummary, rollout_metrics
from pipeline.grpo.types import Response
from pipeline.shards.reader import Site
from pipeline.task.extraction import TAGS
from pipeline.task.thinking import Thinking

SITE = Site("d-1", "d", 1, 2.0, "hard", "text", b"ctx \xff", b" 4", b" 4 apples", (2, 9), "digit", 2.0, 3)
READER = cast("RewardContext", SimpleNamespace(prompts=SimpleNamespace(thinking=Thinking("tags"))))
"""All that prefix matching reads of a policy."""


def said(text: bytes, finished: bool = True, ids: tuple[int, ...] = (1, 2)) -> Response:
    return Response(ids, text, finished, (-0.5,) * len(ids))


RIGHT, WRONG, NONE = said(b"</think>\\boxed{ 4}"), said(b"</think>\\boxed{4}"), said(b"</think>4", ids=(1, 2, 3, 4))
CUT = said(b"</think>\\boxed{ 4}", finished=False)


def test_a_group_by_hand() -> None:
    answered = [RolloutGroup(SITE, (7, 8), (RIGHT, WRONG, NONE, CUT)), RolloutGroup(SITE, (7,), (RIGHT,) * 4)]
    first, second = group_advantages(answered, prefix(READER, answered), group_std)
    assert [outcome.reason for outcome in first.outcomes] == ["match", "mismatch", "missing", "unfinished"]
    assert first.group.advantages == pytest.approx((1.5, -0.5, -0.5, -0.5), abs=1e-5)
    assert first.group.has_gradient and not second.group.has_gradient
    assert first.group.prompt == (7, 8) and first.group.responses[2] == NONE

    metrics = rollout_metrics([GroupSummary.of(first, TAGS), GroupSummary.of(second, TAGS)])
    assert metrics["reward/mean"] == 5 / 8
    assert (metrics["reward/match"], metrics["reward/mismatch"], metrics["reward/unfinished"]) == (5, 1, 1)
    assert metrics["groups/zero_variance"] == metrics["groups/all_right"] == 0.5
    assert metrics["groups/all_wrong"] == 0
    assert metrics["tokens/sampled"] == 7 * 2 + 4
    assert metrics["response/length"] == 18 / 8
    assert metrics["response/boxed"] == 7, "in a response that was cut, too"
    assert metrics["response/at_once"] == 8, "nothing stands before </think>"
    begun = GroupSummary.of(first, TAGS._replace(prefill="\\boxed{"))
    assert begun.boxed == 4, "the given beginning counts"
    assert metrics["policy/entropy"] == pytest.approx(0.5)

    rows = rollout_rows([first], 3, "Hm. ")
    assert [set(row) for row in rows] == [set(ROLLOUTS.names)] * 4
    assert [row["prediction"] for row in rows] == [b" 4", b"4", None, None]
    assert rows[0]["band"] == SITE.band
    assert rows[0]["context"] == "ctx \ufffd" and rows[0]["step"] == 3 and rows[2]["length"] == 4
    assert [str(row["response"])[:4] for row in rows] == ["Hm. "] * 4, "with what was given"


def test_no_site_is_no_rollout() -> None:
    assert group_advantages([], [], group_std) == []

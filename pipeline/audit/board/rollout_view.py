"""Rollouts as the pages show them: their texts, those of a step, and a site at two steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.board.rollout_index import BAND_NAMES, OUTCOMES, RolloutIndex, Rollouts, texts
from pipeline.audit.board.rollout_search import Query, RolloutFinder

SHOWN = 10
"""Rollouts of a step that the Run tab shows."""
RESPONSE_SHOWN, CONTEXT_SHOWN = 20_000, 2_000
"""Characters shown of a response, from its beginning, and of a context, up to its end."""
SAMPLES_SHOWN = 32
"""Rollouts of a site and step that are shown at most."""


def entries(index: RolloutIndex, rollouts: Rollouts, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return rollouts with their texts, ready to be shown.

    Raises:
        UserError: a file was changed since it was indexed.
    """
    return [
        {
            "step": int(rollouts.step_R[row]),
            "site_id": index.site_ids[rollouts.site_R[row]],
            "sample": int(rollouts.sample_R[row]),
            "band": BAND_NAMES[rollouts.band_R[row]],
            "reward": float(rollouts.reward_R[row]),
            "outcome": OUTCOMES[rollouts.outcome_R[row]].replace("_", " "),
            "length": int(rollouts.length_R[row]),
            "advantage": text["advantage"],
            "finished": text["finished"],
            "response": text["response"][:RESPONSE_SHOWN],
            "cut": max(len(text["response"]) - RESPONSE_SHOWN, 0),
            "context": text["context"][-CONTEXT_SHOWN:],
            "target": _text(text["target"]),
            "prediction": None if text["prediction"] is None else _text(text["prediction"]),
        }
        for row, text in zip(rows, texts(rollouts, rows), strict=True)
    ]


def of_step(index: RolloutIndex, finder: RolloutFinder, order: str, step: int | None = None) -> dict[str, Any] | None:
    """Return `SHOWN` rollouts of a stored step, each with one of its site at the first step that has one.

    They are of different sites: each is the first of its site in the order.

    Args:
        index: The rollouts of a run.
        finder: Of the same.
        order: One of `rollout_search.ORDERS`.
        step: The stored step that is nearest to this one is taken; by default the newest.

    Returns:
        `step`; `previous` and `next`, the stored steps around it or None; `rollouts`, pairs of a rollout and an earlier
        one or None. None if no rollout is stored.
    """
    rollouts = index.rollouts()
    if not len(rollouts):
        return None
    steps = _steps(rollouts)
    at = len(steps) - 1 if step is None else min(range(len(steps)), key=lambda i: abs(steps[i] - step))
    found = finder.find(Query(step=steps[at], order=order))
    first_S = np.unique(found.rollouts.site_R[found.rows], return_index=True)[1]
    rows = found.rows[np.sort(first_S)[:SHOWN]].tolist()
    before = [_first_before(found.rollouts, row) for row in rows]
    shown = entries(index, found.rollouts, [*rows, *(row for row in before if row is not None)])
    earlier = iter(shown[len(rows) :])
    return {
        "step": steps[at],
        "previous": steps[at - 1] if at else None,
        "next": steps[at + 1] if at + 1 < len(steps) else None,
        "rollouts": [(shown[i], None if row is None else next(earlier)) for i, row in enumerate(before)],
    }


def _steps(rollouts: Rollouts) -> list[int]:
    """Return the steps that have rollouts, in ascending order."""
    begins = np.flatnonzero(np.diff(rollouts.step_R, prepend=-1))
    return np.unique(rollouts.step_R[begins]).tolist()


def _first_before(rollouts: Rollouts, row: int) -> int | None:
    """Return a rollout of the same site at the first step that has one, if it is an earlier one; the same sample."""
    same_S = np.flatnonzero((rollouts.site_R == rollouts.site_R[row]) & (rollouts.step_R < rollouts.step_R[row]))
    if not len(same_S):
        return None
    first_S = same_S[rollouts.step_R[same_S] == rollouts.step_R[same_S].min()]
    return int(first_S[np.argmax(rollouts.sample_R[first_S] == rollouts.sample_R[row])])


def all_at(index: RolloutIndex, site_id: str) -> list[dict[str, Any]]:
    """Return all rollouts at a site in the order of their steps, those included that were just added.

    Raises:
        UserError: a file was changed since it was indexed.
    """
    while not index.refresh(1.0):
        pass
    by_step = site_rollouts(index, site_id)
    return entries(index, index.rollouts(), [row for rows in by_step.values() for row in rows.tolist()])


def site_rollouts(index: RolloutIndex, site_id: str) -> dict[int, NDArray[np.int64]]:
    """Return the rollouts at a site by step, in ascending order; empty if there are none."""
    rollouts, number = index.rollouts(), index.number_of(site_id)
    row_S = np.flatnonzero(rollouts.site_R == (-1 if number is None else number))
    step_S = rollouts.step_R[row_S]
    return {int(step): row_S[step_S == step] for step in np.unique(step_S)}


def _text(token: bytes) -> str:
    return token.decode("utf-8", errors="backslashreplace")

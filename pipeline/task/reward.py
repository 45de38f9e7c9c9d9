"""The prefix-matching reward (arXiv 2506.08007, Eq. 3), on bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.task.extraction import extract_prediction

Reason = Literal["match", "mismatch", "off_boundary", "longer_than_continuation", "empty", "missing", "unfinished"]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Every reason an outcome can have: `match` is rewarded 1, all others 0."""


@dataclass(frozen=True)
class Outcome:
    """What a prediction earned, and why."""

    reward: float
    """1.0 or 0.0."""
    reason: Reason
    prediction: bytes | None = None
    """What was judged; None where there was nothing to judge (`missing`, `unfinished`)."""


def prefix_reward(prediction: bytes | None, continuation: bytes, boundaries: Sequence[int]) -> Outcome:
    """Reward 1 iff the prediction is a prefix of the true continuation that ends where one of its tokens ends.

    Args:
        prediction: bytes in the box, or of any other guess; None if there was none.
        continuation: bytes of the true continuation, as far as it was stored.
        boundaries: cumulative byte lengths of the continuation's tokens, rising; the last is `len(continuation)`.

    Returns:
        The outcome. Reasons other than `match`: `missing` (None); `empty`; `mismatch` (other bytes);
        `off_boundary` (a true prefix that ends inside a token); `longer_than_continuation` (true as far as the
        continuation was stored, and longer: nobody can tell, so it earns nothing).

    Example:
        >>> four_apples, ends = b" 4 apples", [2, 9]
        >>> [prefix_reward(guess, four_apples, ends).reason for guess in (b" 4", b" 4 apples", b" 4 app", b"4", b"")]
        ['match', 'match', 'off_boundary', 'mismatch', 'empty']
    """
    if prediction is None:
        return Outcome(0.0, "missing")
    if not prediction:
        return Outcome(0.0, "empty", prediction)
    if len(prediction) > len(continuation) and prediction.startswith(continuation):
        return Outcome(0.0, "longer_than_continuation", prediction)
    if not continuation.startswith(prediction):
        return Outcome(0.0, "mismatch", prediction)
    if len(prediction) not in boundaries:
        return Outcome(0.0, "off_boundary", prediction)
    return Outcome(1.0, "match", prediction)


def score_response(response: bytes, finished: bool, continuation: bytes, boundaries: Sequence[int]) -> Outcome:
    """Extract a response's prediction and reward it.

    Args:
        response: bytes of the response's tokens, without the end-of-sequence token.
        finished: the response ended by itself. One cut at the length limit is `unfinished`, whatever stands in it.
        continuation: as in `prefix_reward`.
        boundaries: as in `prefix_reward`.
    """
    if not finished:
        return Outcome(0.0, "unfinished")
    return prefix_reward(extract_prediction(response), continuation, boundaries)

"""Rewards of a prediction, on bytes: prefix matching (arXiv 2506.08007, Eq. 3), and the two of its appendix A."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from pipeline.task.extraction import extract_prediction

Reason = Literal["match", "mismatch", "off_boundary", "longer_than_continuation", "empty", "missing", "unfinished"]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""Every reason an outcome can have. Prefix matching rewards `match` with 1, all others with 0."""


class Outcome(NamedTuple):
    """What a prediction earned, and why."""

    reward: float
    reason: Reason
    prediction: bytes | None = None
    """What was judged; None where there was nothing to judge (`missing`, `unfinished`)."""

    @property
    def right(self) -> bool:
        """The prediction is true."""
        return self.reason == "match"


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


def first_token_reward(prediction: bytes | None, first_token: bytes, target: bytes) -> Outcome:
    """Reward 1 iff the prediction's first token is the true next token (appendix A): what follows is not judged.

    Args:
        prediction: bytes in the box; None if there was none.
        first_token: bytes of the first of the tokens that the policy's tokenizer makes of the prediction.
        target: bytes of the true next token.

    Example:
        >>> first_token_reward(b" 4 pears", b" 4", b" 4").reason, first_token_reward(b" 45", b" 45", b" 4").reason
        ('match', 'mismatch')
    """
    if not prediction:
        return Outcome(0.0, "missing" if prediction is None else "empty", prediction)
    right = target in (first_token, prediction)
    return Outcome(float(right), "match" if right else "mismatch", prediction)


def dense_reward(outcome: Outcome, probability: float) -> Outcome:
    """Appendix A's dense reward: 1 for the right first token, else what the language model thought of the wrong one.

    Args:
        outcome: of `first_token_reward`.
        probability: of the predicted first token after the bare context, read directly.

    Example:
        >>> dense_reward(first_token_reward(b" 5", b" 5", b" 4"), 0.25).reward
        0.25
    """
    return outcome._replace(reward=probability) if outcome.reason == "mismatch" else outcome


UNKNOWN = b"\xef\xbf\xbd"
"""U+FFFD: stands in a response for an id that the tokenizer does not have. Models have spare embedding rows."""


def response_bytes(ids: Sequence[int], token_bytes: Sequence[bytes]) -> bytes:
    """The bytes of a response's token ids. `token_bytes`: bytes by id.

    Example:
        >>> response_bytes([1, 0, 7], [b"a", b"b"]).decode()
        'ba�'
    """
    return b"".join([token_bytes[i] if 0 <= i < len(token_bytes) else UNKNOWN for i in ids])


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

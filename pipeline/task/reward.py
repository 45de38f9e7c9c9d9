"""Rewards of a prediction, on bytes: prefix matching (arXiv 2506.08007, Eq. 3), and the two rewards of appendix A."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from pipeline.task.extraction import TAGS, extract_prediction
from pipeline.task.thinking import Thinking

Reason = Literal["match", "mismatch", "off_boundary", "longer_than_continuation", "empty", "missing", "unfinished"]
REASONS: tuple[Reason, ...] = get_args(Reason)
"""All reasons of an outcome. Prefix matching rewards `match` with 1, all others with 0."""


class Outcome(NamedTuple):
    """The reward of a prediction, with the reason."""

    reward: float
    reason: Reason
    prediction: bytes | None = None
    """The prediction that was judged; None if there was none (`missing`, `unfinished`)."""

    @property
    def right(self) -> bool:
        """True if the prediction is correct."""
        return self.reason == "match"


def prefix_reward(prediction: bytes | None, continuation: bytes, boundaries: Sequence[int]) -> Outcome:
    """Reward 1 iff the prediction is a prefix of the true continuation that ends where one of its tokens ends.

    Args:
        prediction: bytes in the box, or of any other guess; None if there is none.
        continuation: bytes of the true continuation, up to the stored length.
        boundaries: cumulative byte lengths of the continuation's tokens, rising; the last is `len(continuation)`.

    Returns:
        The outcome. Reasons other than `match`: `missing` (None); `empty`; `mismatch` (other bytes);
        `off_boundary` (a true prefix that ends inside a token); `longer_than_continuation` (it begins with the whole
        stored continuation, so its rest cannot be checked and it earns nothing).

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
    """Reward 1 iff the prediction's first token is the true next token (appendix A), ignoring what follows it.

    Args:
        prediction: bytes in the box; None if there is none.
        first_token: bytes of the prediction's first token by the policy's tokenizer.
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
    """Return the dense reward of appendix A: 1 for the right first token, else the policy's probability of it.

    Args:
        outcome: the outcome of `first_token_reward`.
        probability: the policy's probability of the predicted first token directly after the context.

    Example:
        >>> dense_reward(first_token_reward(b" 5", b" 5", b" 4"), 0.25).reward
        0.25
    """
    return outcome._replace(reward=probability) if outcome.reason == "mismatch" else outcome


def priced(outcome: Outcome, tokens: int, price: float) -> Outcome:
    """Return the outcome of a response of n tokens at a price p per token: a right one earns r / (1 + p·n).

    That subtracts r · p·n / (1 + p·n), which is about p for each of the first tokens and always less than r. So of two
    right answers the shorter earns more, and any right answer earns more than a wrong one, which earns what it did.

    Args:
        outcome: the outcome without a price.
        tokens: tokens of the response, its end-of-sequence token included.
        price: `task.token_price`, from 0 to 1.

    Example:
        >>> right = prefix_reward(b" 4", b" 4 apples", [2, 9])
        >>> [priced(right, tokens, 0.01).reward for tokens in (0, 100, 300)]
        [1.0, 0.5, 0.25]
    """
    return outcome._replace(reward=outcome.reward / (1 + price * tokens)) if outcome.right else outcome


UNKNOWN = b"\xef\xbf\xbd"
"""U+FFFD, which replaces ids that the tokenizer does not have: models have unused embedding rows."""


def response_bytes(ids: Sequence[int], token_bytes: Sequence[bytes]) -> bytes:
    """Return the bytes of a response's token ids; `token_bytes` has the bytes of each id.

    Example:
        >>> response_bytes([1, 0, 7], [b"a", b"b"]).decode()
        'ba�'
    """
    return b"".join([token_bytes[i] if 0 <= i < len(token_bytes) else UNKNOWN for i in ids])


def score_response(
    response: bytes, finished: bool, continuation: bytes, boundaries: Sequence[int], thinking: Thinking = TAGS
) -> Outcome:
    """Extract a response's prediction and return its reward by prefix matching.

    Args:
        response: bytes of the response's tokens, without the end-of-sequence token.
        finished: whether the response ended by itself. A response cut at the length limit is `unfinished`.
        continuation: as in `prefix_reward`.
        boundaries: as in `prefix_reward`.
        thinking: how the policy thinks.
    """
    if not finished:
        return Outcome(0.0, "unfinished")
    return prefix_reward(extract_prediction(response, thinking), continuation, boundaries)

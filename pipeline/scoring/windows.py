"""Cuts long documents into overlapping windows, and groups windows into batches.

Positions are indices of target tokens: position t is predicted from the tokens before it. A model that expects a
beginning-of-sequence token gets one in front of every window as context; it is not a position.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config.errors import UserError
from pipeline.config.manifest import ScoreConfig

LEAST_FILLED = 0.9
"""Least share of a padded row that is text: padding is computed, too."""


@dataclass(frozen=True)
class WindowPlan:
    """Size and overlap of windows, the same for every document."""

    tokens: int
    """Document tokens of a window, which predict the positions start+1 … start+tokens."""
    overlap: int
    """Document tokens that consecutive windows share."""


@dataclass(frozen=True)
class Window:
    """A window feeds tokens `start:stop` of one document to the model, and scores positions `first … stop`."""

    document: int
    start: int
    stop: int
    first: int


def plan_windows(config: ScoreConfig, model_limit: int | None, *, bos: bool) -> WindowPlan:
    """Return the windows' size and overlap for a model that takes at most `model_limit` tokens.

    If the model's limit is below `config.window`, the overlap shrinks in proportion. It is never smaller than
    `min_context_tokens`, so that every position has at least that much context.

    Raises:
        UserError: the overlap is as large as a window.

    Example:
        >>> plan_windows(ScoreConfig(window=4096, overlap=1024), 512, bos=True)
        WindowPlan(tokens=511, overlap=128)
    """
    limit = min(config.window, model_limit or config.window)
    tokens = limit - bos
    overlap = max(config.overlap * limit // config.window, config.min_context_tokens)
    if overlap >= tokens:
        raise UserError(
            f"windows of {tokens} tokens cannot overlap by {overlap}",
            where="score.window",
            hint=f"raise `score.window` (the model takes {model_limit or 'any number of'} tokens) or lower "
            "`score.overlap` and `score.min_context_tokens`",
        )
    return WindowPlan(tokens, overlap)


def windows(length: int, plan: WindowPlan, document: int = 0) -> list[Window]:
    """Return the windows of a document of `length` tokens.

    Every position 1 … length−1 is scored by exactly one window: the earliest that reaches it, which has the most
    context.

    Example:
        >>> [(w.start, w.stop, w.first) for w in windows(10, WindowPlan(tokens=4, overlap=1))]
        [(0, 4, 1), (3, 7, 5), (6, 9, 8)]
    """
    found: list[Window] = []
    start, first = 0, 1
    while first < length:
        stop = min(start + plan.tokens, length - 1)
        found.append(Window(document, start, stop, first))
        start, first = start + plan.tokens - plan.overlap, stop + 1
    return found


def batches(items: Sequence[Window], batch_tokens: int, *, bos: bool, packed: bool = False) -> Iterator[list[Window]]:
    """Yield batches of windows, longest first, each of at most `batch_tokens` when padded or packed (at least one).

    Of a padded batch no window is shorter than `LEAST_FILLED` of its row.
    """
    batch: list[Window] = []
    size = widest = 0
    for window in sorted(items, key=lambda w: (w.start - w.stop, w.document, w.start)):
        length = window.stop - window.start + bos
        sparse = not packed and length < LEAST_FILLED * widest
        if batch and (sparse or size + (length if packed else widest) > batch_tokens):
            yield batch
            batch, size = [], 0
        widest = widest if batch else length
        batch.append(window)
        size += length if packed else widest
    if batch:
        yield batch


def fed_tokens(batch: Sequence[Window], *, bos: bool, packed: bool = False) -> int:
    """Return the tokens fed for a batch: the sum of its windows if packed, else all as wide as the widest."""
    lengths = [window.stop - window.start + bos for window in batch]
    return sum(lengths) if packed else max(lengths) * len(lengths)

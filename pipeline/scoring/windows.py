"""Long documents as overlapping windows, and windows as batches.

Positions are indices of target tokens: position t is predicted from tokens before it. A beginning-of-sequence token,
where the model expects one, stands in front of every window as context; it is no position and counts for none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.config.errors import UserError
from pipeline.config.manifest import ScoreConfig


@dataclass(frozen=True)
class WindowPlan:
    """How windows lie in a document: the same for every document."""

    tokens: int
    """Document tokens a window holds, so it predicts the positions start+1 … start+tokens."""
    overlap: int
    """Document tokens consecutive windows share."""


@dataclass(frozen=True)
class Window:
    """Tokens `start:stop` of one document are fed; positions `first … stop` are taken from it."""

    document: int
    start: int
    stop: int
    first: int


def plan_windows(config: ScoreConfig, model_limit: int | None, *, bos: bool) -> WindowPlan:
    """The plan for a model that sees at most `model_limit` tokens.

    Where the model's limit is below `config.window`, the overlap shrinks in proportion; it never gets smaller than
    `min_context_tokens`, so that no window's start is scored with less.

    Raises:
        UserError: no room for a step between windows.

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
    """Windows of a document of `length` tokens. Every position 1 … length−1 is taken from exactly one window, the
    one that gives it most context: the earliest that reaches it.

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
    """Windows longest first, as many at a time as fit `batch_tokens` when padded or packed (at least one)."""
    batch: list[Window] = []
    size = widest = 0
    for window in sorted(items, key=lambda w: (w.start - w.stop, w.document, w.start)):
        length = window.stop - window.start + bos
        if batch and size + (length if packed else widest) > batch_tokens:
            yield batch
            batch, size = [], 0
        widest = widest if batch else length
        batch.append(window)
        size += length if packed else widest
    if batch:
        yield batch


def fed_tokens(batch: Sequence[Window], *, bos: bool, packed: bool = False) -> int:
    """Tokens that are fed for a batch: windows end to end, or all as wide as the widest."""
    lengths = [window.stop - window.start + bos for window in batch]
    return sum(lengths) if packed else max(lengths) * len(lengths)

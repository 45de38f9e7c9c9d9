"""What became of the groups of a run so far: the labels from which `sites: {by: foretold}` learns.

A checkpoint stores them as plain numbers, so that a resumed run foretells, and draws, what it would have without a
kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

REMEMBERED = 4096
"""Most groups that are remembered, the newest. Their weight halves every few steps (`forecast.HALF_LIFE`), so older
ones would count for next to nothing."""


class GroupOutcome(NamedTuple):
    """The outcome of one group."""

    step: int
    """The step that sampled it."""
    phase: int
    row: int
    """Its site: index among those of the phase (`sampled_site.Pick`)."""
    live: bool
    """True if its rewards differ, so that it has a gradient."""
    right: float
    """Share of its responses that are right."""
    foretold: float | None = None
    """Probability of a gradient that was foretold before it was sampled; None if nothing was."""


Outcomes = tuple[GroupOutcome, ...]
"""The newest groups of a run, in the order of their steps; the same on every rank."""


def with_newest(outcomes: Outcomes, newest: Sequence[GroupOutcome]) -> Outcomes:
    """Return the outcomes with those of the next step; at most `REMEMBERED`."""
    return (*outcomes, *newest)[-REMEMBERED:]

"""The data type of a site that a step has drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.shards.reader import Site


class Pick(NamedTuple):
    """Which site a draw takes, and how it came to that."""

    phase: int
    """Number of the curriculum's phase, by rising `until_step`; the last is what follows them all."""
    row: int
    """Index of the site among those of the phase."""
    importance: float = 1.0
    """How much more often the site is drawn than by uniform drawing: weigh by the inverse for an unbiased mean."""
    foretold: float | None = None
    """Probability of a gradient that was foretold for its group; None if nothing was."""


@dataclass(frozen=True)
class SampledSite:
    """A site drawn in a step."""

    site: Site
    repeat: int
    """How often the step drew the same site before; not 0 only if the corpus has fewer sites than a step draws."""
    pick: Pick

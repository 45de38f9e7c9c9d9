"""A site as it was sampled in a step."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.shards.reader import Site


@dataclass(frozen=True)
class SampledSite:
    """A site drawn in a step."""

    site: Site
    repeat: int
    """How often the step had drawn the same site before: a corpus may have fewer sites than a step draws."""

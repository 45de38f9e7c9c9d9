"""The data type of a site that a step has drawn."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.shards.reader import Site


@dataclass(frozen=True)
class SampledSite:
    """A site drawn in a step."""

    site: Site
    repeat: int
    """How often the step drew the same site before; not 0 only if the corpus has fewer sites than a step draws."""

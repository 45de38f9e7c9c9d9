"""Importing this makes everything that de-duplication and selection hold in memory at once tiny, in this process.

It must be imported before the stages are, because they take these sizes as defaults of arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pipeline.core.ray_executor import RayExecutor


def _shrink() -> None:
    assert (
        "pipeline.corpus.dedup.assignment" not in sys.modules and "pipeline.selection.corpus_rules" not in sys.modules
    )
    from pipeline.corpus import scan
    from pipeline.corpus.dedup import candidates

    candidates.AT_ONCE = 50  # of some 600 documents
    scan.SLICE_BYTES = 60_000  # of some 500 kB
    from pipeline.selection import external_sort

    external_sort.AT_ONCE = 500  # of some ten thousand sites
    from pipeline.corpus.dedup import results

    results.GROUP = 4


_shrink()


class SmallRayExecutor(RayExecutor):
    """Its workers import this module before the stage."""

    def map(self, function: Callable[[Any], Any], items: Sequence[Any], **how: Any) -> Iterator[Any]:
        return super().map(partial(_call, function), items, **how)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    from pipeline.selection.corpus_rules import decisions

    assert decisions.__defaults__ == (500,)
    return function(item)

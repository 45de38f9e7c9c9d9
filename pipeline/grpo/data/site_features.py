"""What is known of a site before any response to it: numbers, and what it has in common with other sites."""

from __future__ import annotations

from collections.abc import Callable
from math import log1p
from typing import NamedTuple

from pipeline.shards.reader import Site

NUMBERS: dict[str, Callable[[Site], float]] = {
    "entropy": lambda site: site.entropy,
    "surprise": lambda site: site.nll,
    "rank": lambda site: log1p(site.rank),
    "position": lambda site: log1p(site.position),
    "target_bytes": lambda site: len(site.target),
    "context_bytes": lambda site: log1p(len(site.context)),
    "copies": lambda site: log1p(site.context.count(visible(site.target))),
    "copy_distance": lambda site: log1p(copy_distance(site.context, site.target)),
}
"""Numbers of a site, by name; counts and lengths by their logarithm, since they are spread over orders of magnitude."""

LIKENESS: dict[str, Callable[[Site], object]] = {
    "target": lambda site: site.target,
    "after_word": lambda site: last_words(site.context, 1),
    "after_words": lambda site: last_words(site.context, 2),
    "target_after_word": lambda site: (site.target, last_words(site.context, 1)),
    "class": lambda site: (site.token_class, site.field),
    "document": lambda site: site.doc_id,
    "site": lambda site: site.site_id,
}
"""Kinds of likeness: sites with the same value are alike, and the outcome at one tells of the others."""

WORD_BYTES = 24
"""Most bytes of a word: a text without spaces is cut to so many before the site."""


class SiteFeatures(NamedTuple):
    """The features of one site."""

    numbers: tuple[float, ...]
    """The values of `NUMBERS`."""
    alike: tuple[object, ...]
    """The values of `LIKENESS`."""


def site_features(site: Site) -> SiteFeatures:
    """Return the features of a site."""
    numbers = tuple(float(number(site)) for number in NUMBERS.values())
    return SiteFeatures(numbers, tuple(value(site) for value in LIKENESS.values()))


def visible(target: bytes) -> bytes:
    """Return the target without the whitespace around it, or as it is if it has nothing else."""
    return target.strip() or target


def copy_distance(context: bytes, target: bytes) -> int:
    """Return how many bytes before the site the target's text last began; one more than there are if it never did.

    Example:
        >>> copy_distance(b"4 apples, 3 pears: ", b" 4"), copy_distance(b"4 apples, 3 pears: ", b"5")
        (19, 20)
    """
    return len(context) - context.rfind(visible(target))


def last_words(context: bytes, count: int) -> bytes:
    """Return the last words of a context; fewer if it has fewer.

    Example:
        >>> last_words(b"the day is ", 1), last_words(b"the day is ", 2), last_words(b"day", 2)
        (b'is', b'day is', b'day')
    """
    return b" ".join(context[-WORD_BYTES * count :].split()[-count:])

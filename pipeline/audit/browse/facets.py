"""Facets: how many documents have each value of their metadata, to narrow a list by a click.

A document has every element of a list. A value that names a path (`Mathematics -> Algebra`) also counts for each level
above it. Shape names: D documents, N pairs of a document and a value that it has, V values.
"""

from __future__ import annotations

import json
import re
import threading
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEPARATOR = " -> "
"""What stands between the levels of a path."""
LONGEST = 200
"""Characters of the longest value that is offered; it must fit a URL and be readable in a list."""
MOST_VALUES = 1000
"""Metadata with more different values, such as an id, is not offered."""
MOST_KEYS = 100
"""Keys of the metadata that are read; further ones are not offered."""

Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Value:
    """A value, as a list of facets shows it."""

    path: str
    label: str
    """The last level of the path."""
    documents: int
    share: float
    """Kept positions of these documents, in percent."""


@dataclass(frozen=True)
class Level:
    """The values of one facet that a click can choose."""

    key: str
    chosen: tuple[tuple[str, str], ...]
    """(path, label) of the chosen value and of the levels above it that offer a choice, the topmost first."""
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Facet:
    """The values of one key of the metadata."""

    number_of: dict[str, int]
    """Number of each value; levels above a value have their own."""
    numeric: bool
    """True if all values are numbers."""
    document_N: Ints
    value_N: Ints

    def documents(self, path: str) -> Ints:
        """Return the numbers of the documents that have a value, or one below it."""
        return self.document_N[self.value_N == self.number_of.get(path, -1)]

    def level(self, key: str, under: str, found: Ints, kept_D: Ints, positions_D: Ints) -> Level:
        """Return the values below `under` that some documents have: the most frequent first, numbers in their order.

        Args:
            key: Name of the facet.
            under: The chosen value; empty for none. Levels that have only one value are then passed over.
            found: Numbers of the documents that are counted.
            kept_D: Kept positions of every document.
            positions_D: All positions of every document.
        """
        among_D = np.zeros(len(kept_D), dtype=bool)
        among_D[found] = True
        inside_N = among_D[self.document_N]
        document_N, value_N = self.document_N[inside_N], self.value_N[inside_N]
        size = len(self.number_of)
        count_V = np.bincount(value_N, minlength=size)
        kept_V = np.bincount(value_N, kept_D[document_N], minlength=size)
        positions_V = np.bincount(value_N, positions_D[document_N], minlength=size)
        below = self._below(under) if under else self._top()
        values = [
            Value(path, _label(path), int(count_V[v]), 100 * float(kept_V[v]) / max(float(positions_V[v]), 1.0))
            for path, v in below
            if count_V[v]
        ]
        values.sort(key=lambda value: (float(value.path), "") if self.numeric else (-value.documents, value.label))
        return Level(key, self._chosen(under) if under else (), tuple(values))

    def _chosen(self, path: str) -> tuple[tuple[str, str], ...]:
        """Return (path, label) of the levels of a path from the first that offers a choice."""
        skipped = min(depth(self._top()[0][0]), depth(path))
        return tuple((level, _label(level)) for level in list(levels(path))[skipped:])

    def _below(self, path: str) -> list[tuple[str, int]]:
        """Return the values one level below a path; those of the first level for an empty one."""
        begin = f"{path}{SEPARATOR}" if path else ""
        found = ((name, v) for name, v in self.number_of.items() if name.startswith(begin))
        return [(name, v) for name, v in found if SEPARATOR not in name[len(begin) :]]

    def _top(self) -> list[tuple[str, int]]:
        """Return the values of the first level that has several."""
        values = self._below("")
        while len(values) == 1 and (below := self._below(values[0][0])):
            values = below
        return values


class Facets:
    """The facets of a corpus, counted in the background.

    Args:
        metas: The metadata of every document, as JSON objects.
    """

    def __init__(self, metas: Iterable[str]) -> None:
        self._facets: dict[str, Facet] = {}
        self._thread = threading.Thread(target=self._read, args=(metas,), daemon=True)
        self._thread.start()

    def ready(self, seconds: float | None = None) -> bool:
        """Wait until the metadata was read, at most some seconds; return True if it was."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def documents(self, key: str, path: str) -> Ints:
        """Return the numbers of the documents that have a value of a facet."""
        self.ready()
        return self._facets[key].documents(path) if key in self._facets else np.zeros(0, np.int64)

    def levels(self, chosen: dict[str, str], found: Ints, kept_D: Ints, positions_D: Ints) -> list[Level]:
        """Return what is offered of each facet. The arguments are those of `Facet.level`, `chosen` a value by key."""
        offered = [
            facet.level(key, chosen.get(key, ""), found, kept_D, positions_D) for key, facet in self._facets.items()
        ]
        return [level for level in offered if level.chosen or len(level.values) > 1]

    def _read(self, metas: Iterable[str]) -> None:
        self._facets = facets_of(metas)


def facets_of(metas: Iterable[str]) -> dict[str, Facet]:
    """Return the facets of documents by the keys of their metadata.

    A key is a facet if it has two or more values, at most `MOST_VALUES`, and at most half as many as documents have it.
    Objects, empty values and those of more than `LONGEST` characters are no values.
    """
    collected: dict[str, _Collected] = {}
    for document, text in enumerate(metas):
        for key, found in json.loads(text).items():
            if key not in collected and len(collected) < MOST_KEYS:
                collected[key] = _Collected()
            if key in collected and len(collected[key].number_of) <= MOST_VALUES:
                collected[key].add(document, found)
    return {key: own.facet() for key, own in collected.items() if own.is_facet and _name(key) == key}


class _Collected:
    """The values of one key so far."""

    def __init__(self) -> None:
        self.number_of: dict[str, int] = {}
        self._named: set[str] = set()
        self._numeric = True
        self._documents = 0
        self._document_N, self._value_N = array("i"), array("i")

    def add(self, document: int, found: Any) -> None:
        """Take in what a document has under the key."""
        named = {name: element for element in _elements(found) if (name := _name(element))}
        self._named.update(named)
        self._documents += bool(named)
        self._numeric &= all(type(element) in (int, float) for element in named.values())
        for path in dict.fromkeys(path for name in named for path in levels(name)):
            self._document_N.append(document)
            self._value_N.append(self.number_of.setdefault(path, len(self.number_of)))

    @property
    def is_facet(self) -> bool:
        few = len(self._named) > 1 and len(self.number_of) <= MOST_VALUES
        return few and 2 * len(self._named) <= self._documents

    def facet(self) -> Facet:
        return Facet(self.number_of, self._numeric, np.array(self._document_N), np.array(self._value_N))


def _elements(found: Any) -> list[Any]:
    """Return the elements of a list, and any other value as the only one."""
    return found if isinstance(found, list) else [found]


def levels(path: str) -> Iterator[str]:
    """Yield a path's levels, the topmost first, and the path itself.

    Example:
        >>> list(levels("Algebra -> Equations"))
        ['Algebra', 'Algebra -> Equations']
    """
    parts = path.split(SEPARATOR)
    return (SEPARATOR.join(parts[:depth]) for depth in range(1, len(parts) + 1))


def depth(path: str) -> int:
    """Return how many levels are above a path."""
    return path.count(SEPARATOR)


def _label(path: str) -> str:
    return path.rpartition(SEPARATOR)[2]


def _name(element: Any) -> str:
    """Return the name of a value; empty if it is none.

    Example:
        >>> [_name(element) for element in ("a -> b", " ", True, 8.0, None, {"a": 1})]
        ['a -> b', '', 'true', '8', '', '']
    """
    if element is None or isinstance(element, dict | list):
        return ""
    name = element.strip() if isinstance(element, str) else json.dumps(element).removesuffix(".0")
    return name if len(name) <= LONGEST and not _HALVES.search(name) else ""


_HALVES = re.compile("[\ud800-\udfff]")
"""Halves of a character, which JSON can name and no page or URL can hold."""

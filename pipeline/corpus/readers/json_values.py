"""JSON values from bytes, with the reason where there is none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pipeline.corpus.quarantine import Unusable
from pipeline.corpus.readers.records import utf8


def parse_json_object(raw: bytes) -> Mapping[str, Any]:
    """Return the JSON object in `raw`. NaN and infinities become null, as in most readers.

    Raises:
        Unusable: `not_utf8`, `not_json`, `not_an_object`, or `duplicate_key` (two values under one name, at any depth:
            which one is meant is unknown).
    """
    value, repeated = load_json(raw)
    if not isinstance(value, dict):
        raise Unusable("not_an_object", f"a {type(value).__name__}")
    if repeated:
        raise Unusable("duplicate_key", ", ".join(f"`{name}`" for name in sorted(repeated)))
    return value


def load_json(raw: bytes) -> tuple[Any, set[str]]:
    """Return the JSON value in `raw`, and names that occur twice in an object.

    Raises:
        Unusable: `not_utf8` or `not_json`.
    """
    text = utf8(raw)
    try:
        return _value(text)
    except RecursionError as error:
        raise Unusable("not_json", "nested too deeply") from error
    except ValueError as error:
        raise Unusable("not_json", str(error)) from error


def _value(text: str) -> tuple[Any, set[str]]:
    """Return the value of a text, and the names that occur twice in an object."""
    if not text.startswith("\ufeff"):  # of which `json.loads` says that it is a byte order mark
        with suppress(_RepeatedError):
            return _DECODER.decode(text), set()
    repeated: set[str] = set()

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.update(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        return dict(pairs)

    return json.loads(text, strict=False, object_pairs_hook=collect, parse_constant=lambda _: None), repeated


class _RepeatedError(Exception):
    """A name occurs twice in an object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise _RepeatedError
    return tree


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_object, parse_constant=lambda _: None)
"""Made once: `json.loads` with settings makes a decoder for each value, which costs as much as a short record."""


def is_json(raw: bytes) -> bool:
    """Return whether bytes are a JSON value."""
    try:
        load_json(raw)
    except Unusable:
        return False
    return True


def is_object(raw: bytes) -> bool:
    """Return whether bytes are a JSON object."""
    return raw.lstrip().startswith(b"{") and is_json(raw)

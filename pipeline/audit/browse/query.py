"""Query parameters of the pages: whatever a URL says, a value in its range."""

from __future__ import annotations

import re

from starlette.datastructures import QueryParams

from pipeline.config.errors import UserError

SPLITS = ("train", "validation")


def split_of(parameters: QueryParams) -> str:
    """Return the split; the training split if none is named.

    Raises:
        UserError: There is no such split.
    """
    split = parameters.get("split", SPLITS[0])
    if split not in SPLITS:
        raise UserError("no such split", where=split, hint=f"use one of {', '.join(SPLITS)}")
    return split


def page_number(parameters: QueryParams) -> int:
    """Return the page of a list, from 1."""
    return max(int(number_of(parameters, "page", 1e9) or 1), 1)


def number_of(parameters: QueryParams, name: str, most: float) -> float | None:
    """Return a parameter as a number in [0, most]; None if it is not a number."""
    try:
        number = float(parameters.get(name) or "nan")
    except ValueError:
        return None
    return min(max(number, 0), most) if number == number else None


def is_position(position: str, tokens: int) -> bool:
    """Return True if a parameter is a position of a document with so many tokens."""
    return re.fullmatch(r"[0-9]{1,9}", position) is not None and int(position) < tokens

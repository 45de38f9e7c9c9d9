"""Show a response on a few terminal lines: the end of its prompt, the response, the truth, and what it earned."""

from __future__ import annotations

from rich.cells import cell_len, chop_cells

from pipeline.core.invisible import escape_invisible
from pipeline.task.reward import Outcome

WIDTH = 86
"""Terminal cells of a line, so that it fits into 100 after the name of a command."""
_LABEL = 10
_CUT = "…"


def excerpt(context: bytes, after: bytes, response: bytes, continuation: bytes, outcome: Outcome) -> list[str]:
    r"""Return at most four lines of at most `WIDTH` cells. Invisible characters and line ends are escaped.

    Args:
        context: bytes of the context in the prompt; its end is shown.
        after: bytes of the prompt after the context; their end is shown.
        response: the response; of a long one the beginning and the end are shown.
        continuation: the true continuation.
        outcome: what the response earned, and why.

    Example:
        >>> lines = excerpt(b"2 + 2 =", b"</user>", rb"Even.</think>\boxed{ 5}", b" 4.", Outcome(0.0, "mismatch"))
        >>> print("\n".join(lines))
        prompt    2 + 2 = ┊ </user>
        response  Even.</think>\boxed{ 5}
        truth     ␣4.   reward 0, mismatch
    """
    width = WIDTH - _LABEL
    earned = f"   reward {outcome.reward:g}, {outcome.reason.replace('_', ' ')}"
    told = chop_cells(visible(response), width) or [""]
    if len(told) > 2:
        told = [first_cells(visible(response), width), last_cells(visible(response), width)]
    end = last_cells(visible(after), width // 3)
    return [
        f"{'prompt':<{_LABEL}}{last_cells(visible(context), width - 3 - cell_len(end))} ┊ {end}",
        f"{'response':<{_LABEL}}{told[0]}",
        *(f"{'':<{_LABEL}}{line}" for line in told[1:]),
        f"{'truth':<{_LABEL}}{first_cells(visible(continuation).replace(' ', '␣'), width - len(earned))}{earned}",
    ]


def visible(content: bytes) -> str:
    """Return bytes as text on one line, with visible signs for line ends, tabs and invisible characters."""
    return escape_invisible(content).replace("\n", "⏎").replace("\t", "⇥")


def first_cells(text: str, cells: int) -> str:
    """Return the text, or its beginning and `…` if it takes more terminal cells than `cells`, which are at least 3.

    Example:
        >>> first_cells("数学数学", 8), first_cells("数学数学", 7)
        ('数学数学', '数学数…')
    """
    return text if _fits(text, cells) else f"{_beginning(text, cells - 1)}{_CUT}"


def last_cells(text: str, cells: int) -> str:
    """Return the text, or `…` and its end if it takes more terminal cells than `cells`.

    Example:
        >>> last_cells("abcdef", 4)
        '…def'
    """
    return text if _fits(text, cells) else f"{_CUT}{_end(text, cells - 1)}"


def _fits(text: str, cells: int) -> bool:
    return len(text) <= cells and cell_len(text) <= cells


def _beginning(text: str, cells: int) -> str:
    """Return as much of the beginning as fits; a character without width counts as well, so that none pile up."""
    return next(iter(chop_cells(text[:cells], cells)), "")


def _end(text: str, cells: int) -> str:
    return _beginning(text[: -cells - 1 : -1], cells)[::-1]

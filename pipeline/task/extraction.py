r"""Extracts the prediction from a response (arXiv 2506.08007 §3.3).

The prediction is the content of the last `\boxed{…}` of the answer, which `Thinking.answer` finds, taken literally:
spaces and newlines in the box count. LaTeX corpora are full of targets such as `}`, `^{` and `}{`, so matching braces
alone would be wrong.
"""

from __future__ import annotations

import re

from pipeline.task.thinking import BOX, Thinking

TAGS = Thinking()
_BRACE = re.compile(rb"[{}]")


def extract_prediction(response: bytes, thinking: Thinking = TAGS) -> bytes | None:
    r"""Return the prediction of a response, or None if it has none, in time linear in its length.

    1. With `tags`, the answer is what follows the first `</think>`; otherwise it is the whole response.
    2. The box opens at the answer's last `\boxed{`. So no prediction contains `\boxed{`, though it may be `\boxed`.
    3. If the response, trailing ASCII whitespace aside, ends in `}`, the box ends it: the box closes at that brace.
    4. Otherwise text follows, and the box closes at the brace that matches its own. All braces count: `\}` is a
       backslash and a brace, because a target may just as well be a lone backslash.

    Args:
        response: the bytes of the response's tokens, without the end-of-sequence token; any bytes at all.
        thinking: how the policy thinks.

    Returns:
        The bytes in the box, which may be empty; None if thinking never ends, or no box opens or closes in the answer.

    Example:
        >>> extract_prediction(rb"<think>A digit.</think>The next token is $\boxed{ 4}$.")
        b' 4'
        >>> extract_prediction(rb"A brace.</think>\boxed{}}")
        b'}'
        >>> extract_prediction(rb"No end: \boxed{ 4}") is None
        True
        >>> extract_prediction(rb"No end: \boxed{ 4}", Thinking("free"))
        b' 4'
    """
    _, box, inside = (thinking.answer(response) or b"").rpartition(BOX)
    if not box:
        return None
    ending = inside.rstrip()
    if ending.endswith(b"}"):
        return ending[:-1]
    depth = 1
    for brace in _BRACE.finditer(inside):
        depth += 1 if brace.group() == b"{" else -1
        if depth == 0:
            return inside[: brace.start()]
    return None

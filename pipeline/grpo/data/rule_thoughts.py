"""Short thoughts made by rule, with which `rpt warmup` teaches a policy the form of a response before RL.

A thought repeats the last tokens of the context and goes on with the true next token, which then stands in the box:

    I expect a number. It goes on: "… so that x = 4"

What a thought says comes from two places only: from the context, which the policy reads, and from the true next token,
which the response ends with anyway. Nothing else of the document is used. A statement about the next token (its kind,
the token itself) is therefore a prediction that the policy has to make by itself once it writes its own thoughts.

Repeating the end of the context brings the policy to where its pre-training is of use: the next token of the thought
is the next token of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.selection.classes import TOKEN_CLASSES

KINDS = {
    "whitespace": "a space or a line break",
    "digit": "a number",
    "latex_command": "a LaTeX command",
    "word_start": "a word",
    "word_part": "the rest of a word",
    "ideograph": "a character",
    "punctuation": "a symbol",
    "partial_character": "a part of a character",
    "other": "a special character",
}
"""What a thought calls the token classes."""
assert tuple(KINDS) == TOKEN_CLASSES

SHORTEST_TAIL, LONGEST_TAIL = 2, 6
"""A thought repeats between so many of the context's last policy tokens, if it has as many.

The longer it is, the more often a small policy loses its place in it and never closes the box.
"""


@dataclass(frozen=True)
class Wording:
    """The words of a thought around the repeated tokens; `{kind}` is replaced by the kind of the next token."""

    before: str
    after: str


WORDINGS = (
    Wording('The text goes on: "…', '"\n'),
    Wording('I expect {kind}. The text goes on: "…', '"\n'),
    Wording('The text ends here, and {kind} follows: "…', '".\n'),
    Wording('After the last words I would write {kind}: "…', '"\n'),
    Wording('What comes next? "…', '", so it is {kind}.\n'),
)


def rule_thought(
    tokens: CorpusTokenizer, context_ids: Sequence[int], target_ids: Sequence[int], token_class: str, key: int
) -> list[int]:
    """Return the token ids of a thought: wording, last tokens of the context, next token, wording.

    Args:
        tokens: the policy's tokenizer.
        context_ids: ids of the context.
        target_ids: ids of the true next token, one where the policy has its bytes as a token.
        token_class: its class, one of `TOKEN_CLASSES`.
        key: random bits, which choose the wording and how much of the context is repeated.
    """
    wording, kind = WORDINGS[key % len(WORDINGS)], KINDS[token_class]
    length = SHORTEST_TAIL + key // len(WORDINGS) % (LONGEST_TAIL - SHORTEST_TAIL + 1)
    before, after = (tokens.encode(part.format(kind=kind)).tolist() for part in (wording.before, wording.after))
    return [*before, *context_ids[-length:], *target_ids, *after]

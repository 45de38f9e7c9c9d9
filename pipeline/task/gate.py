"""When thinking pays: a small logistic model over what is known at a site before a thought.

`rpt gate` fits it (`pipeline/evaluation/gate.py`) and writes it as JSON; `Gate.thinks` applies it. A feature is allowed
only if it can be computed from the context and one forward pass of the policy over it. The true token's class, loss
and rank, and the corpus column that it is in, are not known before it, and are never features.

Standard library only, Python 3.8 or later, because exports carry this file.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

VERSION = 1
"""Version of the file and of the features' meaning."""
MAX_BYTES = 65536
"""Size above which a file is no gate."""

KINDS = ("space", "digit", "letter", "symbol", "other")
"""Kinds of a character, see `kind_of`."""
FEATURES = (
    "entropy",
    "logprob",
    "margin",
    "log_context_tokens",
    *(f"guess_{kind}" for kind in KINDS),
    *(f"end_{kind}" for kind in KINDS),
)
"""Names of the features, in the order of `features`."""

_KIND_OF = {"N": "digit", "L": "letter", "M": "letter", "P": "symbol", "S": "symbol"}
_KEYS = ("version", "features", "mean", "scale", "coefficients", "intercept", "threshold")


class Known(NamedTuple):
    """What is known at a site before a thought: the policy's next-token distribution after the bare context."""

    entropy: float
    """Entropy of the next token, in nats, over the whole vocabulary."""
    logprob: float
    """Log-probability of the most likely next token, in nats."""
    margin: float
    """Log-probability of the most likely token minus that of the second, in nats."""
    context_tokens: int
    """Tokens of the context that the policy read."""
    guess: bytes
    """Bytes of the most likely next token: the direct prediction."""
    context_end: str
    """The last character of the context; empty if there is none."""


def kind_of(character: str) -> str:
    """Return the kind of a character; `other` for an empty text and for what is no letter, digit, symbol or space.

    Example:
        >>> [kind_of(character) for character in (" ", "7", "é", "=", "{", "")]
        ['space', 'digit', 'letter', 'symbol', 'symbol', 'other']
    """
    if character.isspace():
        return "space"
    return _KIND_OF.get(unicodedata.category(character)[0], "other") if character else "other"


def features(known: Known) -> tuple[float, ...]:
    """Return the values of `FEATURES`: three of the distribution, the context's length, and two kinds as 0 or 1.

    The kind of the guess is that of its first visible character; that of the context is the kind of its last one.

    Example:
        >>> found = dict(zip(FEATURES, features(Known(0.5, -0.1, 2.0, 1, b" 4", "="))))
        >>> [name for name, value in found.items() if value == 1.0], found["entropy"]
        (['guess_digit', 'end_symbol'], 0.5)
    """
    text = known.guess.decode("utf-8", "replace")
    guess, end = kind_of((text.strip() or text)[:1]), kind_of(known.context_end)
    return (
        known.entropy,
        known.logprob,
        known.margin,
        math.log(max(1, known.context_tokens)),
        *(float(kind == guess) for kind in KINDS),
        *(float(kind == end) for kind in KINDS),
    )


class Gate(NamedTuple):
    """A logistic model of the chance that thinking pays, where thinking and answering at once differ."""

    mean: tuple[float, ...]
    """Value of each feature that counts as 0."""
    scale: tuple[float, ...]
    """Value of each feature, above its mean, that counts as 1."""
    coefficients: tuple[float, ...]
    intercept: float
    threshold: float = 0.5
    """Probability above which the policy thinks."""

    def probability(self, values: Sequence[float]) -> float:
        """Return the probability that thinking pays, given the values of `FEATURES`.

        Example:
            >>> gate = Gate((0.0,) * 14, (1.0,) * 14, (math.log(3), *(0.0,) * 13), 0.0)
            >>> round(gate.probability((1.0, *(0.0,) * 13)), 6)
            0.75
        """
        parts = zip(self.coefficients, values, self.mean, self.scale)  # noqa: B905 (Python 3.8)
        score = self.intercept + math.fsum(weight * (value - mean) / scale for weight, value, mean, scale in parts)
        return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))

    def thinks(self, known: Known) -> bool:
        """Return whether to think at a site; otherwise the direct prediction is the answer."""
        return self.probability(features(known)) > self.threshold

    def text(self) -> str:
        """Return the gate as JSON, which `gate_of` reads."""
        tree = {"version": VERSION, "features": FEATURES, **self._asdict()}
        return json.dumps({key: tree[key] for key in _KEYS}, indent=1) + "\n"


def gate_of(text: str) -> Gate:
    """Return the gate in a JSON text, once everything in it has been checked.

    Raises:
        ValueError: it is no gate of this version; the message says which part is wrong.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"a gate has at most {MAX_BYTES:,} bytes")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise ValueError("not a JSON object")
    wrong = sorted(set(tree) ^ set(_KEYS))
    if wrong:
        raise ValueError(f"missing or unknown keys: {', '.join(map(repr, wrong))[:200]}")
    if isinstance(tree["version"], bool) or tree["version"] != VERSION:
        raise ValueError(f"version {str(tree['version'])[:20]}, this one reads {VERSION}")
    if tree["features"] != list(FEATURES):
        raise ValueError("`features` are not those of this version")
    mean, scale, coefficients = (_numbers(tree, key) for key in ("mean", "scale", "coefficients"))
    if min(scale) <= 0:
        raise ValueError("`scale` must be above 0")
    threshold = _number(tree["threshold"], "threshold")
    if not 0 <= threshold <= 1:
        raise ValueError("`threshold` must be from 0 to 1")
    return Gate(mean, scale, coefficients, _number(tree["intercept"], "intercept"), threshold)


def _numbers(tree: dict[str, Any], key: str) -> tuple[float, ...]:
    values = tree[key]
    if not isinstance(values, list) or len(values) != len(FEATURES):
        raise ValueError(f"`{key}` must be a list of {len(FEATURES)} numbers")
    return tuple(_number(value, key) for value in values)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= 1e6:
        raise ValueError(f"`{key}` must be numbers between -1e6 and 1e6")
    return float(value)

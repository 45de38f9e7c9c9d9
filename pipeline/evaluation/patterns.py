"""Reasoning patterns: shares of responses that contain a keyword of a group (arXiv 2506.08007, Figure 6, Table 9).

The paper compares 200 responses of a model that solves problems with 200 of one that reasons about next tokens, so task
and model differ at once; here two policies answer at the same sites.

Shape name: R responses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.intervals import difference, proportion

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "transition": ("alternatively", "think differently"),
    "reflection": ("wait", "initial answer", "original answer", "looking back", "thought process"),
    "breakdown": ("break down", "break this down"),
    "hypothesis": ("probably", "something like"),
    "divergent": ("etc.", "or something", "either", "sometimes it refers", "otherwise", "exploring", "options"),
    "deduction": ("summarize", "conclusion", "conclude", "finally", "logically", "consequently"),
}
"""Keywords by group, as in the paper's Table 9."""

PAPER_CHANGE = {"hypothesis": 1.618, "deduction": 0.262}
"""Relative change of the share from R1-Distill-Qwen-14B to RPT-14B, as given in the paper's text on Figure 6."""


def matcher(keywords: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of the keywords as whole words, ignoring case.

    Example:
        >>> waits = matcher(PATTERNS["reflection"])
        >>> [bool(waits.search(text)) for text in ("Wait, no.", "the waiter", "etc.")]
        [True, False, False]
        >>> bool(matcher(PATTERNS["divergent"]).search("3, 4 etc. and"))
        True
    """
    return re.compile("|".join(rf"(?<!\w){re.escape(keyword)}(?!\w)" for keyword in keywords), re.IGNORECASE)


def pattern_hits(responses_R: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Return a mask [R] of the responses that contain a keyword, by group."""
    return {
        group: np.array([bool(found.search(response)) for response in responses_R], dtype=bool)
        for group, found in ((group, matcher(keywords)) for group, keywords in PATTERNS.items())
    }


def compare_patterns(
    after_R: Sequence[str], before_R: Sequence[str], documents_R: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Compare the patterns in two policies' responses to the same sites and return JSON values.

    Args:
        after_R: Responses of one policy.
        before_R: Responses of the other, in the same order.
        documents_R: The sites' documents, by which intervals are clustered.

    Returns:
        By group: `after`, `before` (shares with intervals), `difference` (paired), `relative` (change of the share;
        None where `before` is 0).
    """
    own, other = pattern_hits(after_R), pattern_hits(before_R)
    found = {}
    for group in PATTERNS:
        after, before = proportion(own[group], documents_R), proportion(other[group], documents_R)
        change = difference(own[group], other[group], documents_R)
        assert after and before and change, "no responses"
        found[group] = {
            "after": asdict(after),
            "before": asdict(before),
            "difference": asdict(change),
            "relative": after.value / before.value - 1 if before.value else None,
        }
    return found

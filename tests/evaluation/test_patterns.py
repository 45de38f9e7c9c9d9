"""Keyword groups of the paper's Table 9: hand-counted."""

import pytest

from pipeline.evaluation.patterns import PATTERNS, compare_patterns, pattern_hits

RESPONSES = [
    "Wait, that is wrong. Let me break down the sum.",
    "It is probably 4, or something like it. Finally: 4.",
    "Alternatively, waiting is an option. Many OPTIONS.",
    "Either way, etc. The conclusion is illogical.",
    "4",
]


def test_groups_by_hand():
    hits = {group: found.astype(int).tolist() for group, found in pattern_hits(RESPONSES).items()}
    assert hits == {
        "transition": [0, 0, 1, 0, 0],
        "reflection": [1, 0, 0, 0, 0],
        "breakdown": [1, 0, 0, 0, 0],
        "hypothesis": [0, 1, 0, 0, 0],
        "divergent": [0, 1, 1, 1, 0],
        "deduction": [0, 1, 0, 1, 0],
    }


@pytest.mark.parametrize("keyword", [keyword for group in PATTERNS.values() for keyword in group])
def test_every_keyword_is_found_and_not_within_words(keyword):
    (group,) = [group for group, keywords in PATTERNS.items() if keyword in keywords]
    assert pattern_hits([f"so {keyword.upper()} 4"])[group].all()
    assert not pattern_hits([f"so x{keyword} 4"])[group].any()


def test_two_policies_are_compared_response_by_response():
    before = ["4", "probably 4", "4", "4", "4"]
    found = compare_patterns(RESPONSES, before, ["a", "b", "c", "d", "e"])
    assert (found["deduction"]["after"]["value"], found["deduction"]["before"]["value"]) == (0.4, 0.0)
    assert found["deduction"]["relative"] is None
    assert found["hypothesis"]["relative"] == 0.0 and found["hypothesis"]["difference"]["value"] == 0.0
    assert found["divergent"]["difference"]["p_value"] == 0.25  # three gains of one: 2 of 8 signs

"""The strip of a long document, by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pipeline.audit.minimap import BINS, HARDEST, LONG, hardest, minimap


def test_bins_have_means_of_what_is_scored() -> None:
    T = 2 * BINS  # two positions per bin
    entropy = [None, None, None, 3.0, *[0.25, 0.75] * (BINS - 2)]
    rank = [None, None, None, 7, *[0, 3] * (BINS - 2)]
    frame = pl.DataFrame({"entropy": entropy, "nll": entropy, "rank": rank}, schema_overrides={"entropy": pl.Float32})
    kept_T = np.arange(T) >= T - 3
    made = minimap(frame, kept_T)
    assert made is not None
    assert made["entropy"] == made["nll"] == [None, 3.0, *[0.5] * (BINS - 2)]
    assert made["rank"] == [None, 7.0, *[1.0] * (BINS - 2)]  # the geometric mean of 1 and 4 is 2
    assert made["kept"] == [*[0] * (BINS - 2), 1, 2]


@pytest.mark.parametrize("tokens", [LONG, LONG + 1, 997, 100_003])
def test_every_position_is_in_one_of_the_bins(tokens: int) -> None:
    scores = pl.DataFrame({"entropy": [1.0] * tokens, "nll": [1.0] * tokens, "rank": [0] * tokens})
    made = minimap(scores, np.ones(tokens, dtype=bool))
    assert made is not None
    assert len(made["kept"]) == BINS
    assert sum(made["kept"]) == tokens


def test_a_short_document_has_none() -> None:
    frame = pl.DataFrame({"entropy": [1.0] * (LONG - 1), "nll": 1.0, "rank": 0})
    assert minimap(frame, np.ones(LONG - 1, dtype=bool)) is None


def test_the_hardest_that_a_rule_can_keep_are_in_the_order_of_the_text() -> None:
    entropy = [None, 9.0, float("nan"), 5.0, *[0.1] * HARDEST, 5.0]
    frame = pl.DataFrame(
        {"position": range(len(entropy)), "entropy": entropy, "inside_character": [i == 1 for i in range(len(entropy))]}
    )
    assert hardest(frame) == [3, *range(4, 2 + HARDEST), len(entropy) - 1]

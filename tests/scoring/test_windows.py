"""Windows: every position exactly once, with the most context there is."""

from __future__ import annotations

from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from pipeline.config.manifest import ScoreConfig
from pipeline.scoring.windows import Window, WindowPlan, batches, fed_tokens, plan_windows, windows

PLANS = st.integers(2, 40).flatmap(lambda n: st.builds(WindowPlan, st.just(n), st.integers(0, n - 1)))


@given(length=st.integers(0, 300), plan=PLANS)
def test_every_position_once_from_the_window_with_most_context(length: int, plan: WindowPlan) -> None:
    found = windows(length, plan)
    taken = [(t, w) for w in found for t in range(w.first, w.stop + 1)]
    assert [t for t, _ in taken] == list(range(1, length))
    for t, window in taken:
        reaching = [w for w in found if w.start < t <= w.stop]
        assert window.start == min(w.start for w in reaching)
        assert t - window.start > plan.overlap or window.start == 0
    assert all(w.stop - w.start <= plan.tokens and w.stop < length for w in found)


def test_a_short_document_is_one_window() -> None:
    assert windows(5, WindowPlan(tokens=4, overlap=3)) == [Window(0, 0, 4, 1)]
    assert windows(1, WindowPlan(tokens=4, overlap=3)) == windows(0, WindowPlan(4, 3)) == []


def test_plan_respects_the_model_and_makes_room_for_bos() -> None:
    config = ScoreConfig(window=100, overlap=20, min_context_tokens=4)
    assert plan_windows(config, None, bos=False) == WindowPlan(100, 20)
    assert plan_windows(config, 1000, bos=True) == WindowPlan(99, 20)
    assert plan_windows(config, 50, bos=False) == WindowPlan(50, 10)
    assert plan_windows(config, 10, bos=True) == WindowPlan(9, 4)  # not 2: windows start with min_context_tokens
    with pytest.raises(UserError, match=r"score\.window"):
        plan_windows(config, 5, bos=True)


@given(
    lengths=st.lists(st.integers(2, 60), max_size=30),
    budget=st.integers(1, 200),
    bos=st.booleans(),
    packed=st.booleans(),
)
def test_batches_hold_every_window_once_within_the_budget(
    lengths: list[int], budget: int, bos: bool, packed: bool
) -> None:
    items = [w for d, n in enumerate(lengths) for w in windows(n, WindowPlan(20, 5), d)]
    found = list(batches(items, budget, bos=bos, packed=packed))
    assert {w for b in found for w in b} == set(items) and sum(map(len, found)) == len(items)
    for batch, after in zip_longest(found, found[1:]):
        fed = [w.stop - w.start + bos for w in batch]
        size = sum(fed) if packed else max(fed) * len(fed)
        assert fed_tokens(batch, bos=bos, packed=packed) == size
        assert len(batch) == 1 or size <= budget
        assert packed or min(fed) >= 0.9 * max(fed)
        if after:
            following = after[0].stop - after[0].start + bos
            full = size + (following if packed else max(fed)) > budget
            assert full or (not packed and following < 0.9 * max(fed)), "no more would fit, or fill its row"
    assert found == list(batches(items[::-1], budget, bos=bos, packed=packed))

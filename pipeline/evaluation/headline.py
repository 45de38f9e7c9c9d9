"""What an evaluation found, in three or four sentences: what rose, what did not, and against what.

A change counts if the 95 % interval of the paired difference excludes zero; otherwise it is not clear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.policies import WARM_UP


def headline(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Return sentences about the first set of sites: the last policy beside the first one.

    After a warm-up, what rose and fell in it is told apart from what RL added: else RL would be credited with the form.

    Args:
        report: The JSON report of an evaluation.

    Returns:
        What rose, what did not, what the warm-up alone did if there was one, and the comparison with direct prediction;
        of a single policy only the comparison; without sites one sentence that says so.
    """
    summary = next(iter(report["sets"].values()))
    first, last = report["policies"][0], report["policies"][-1]
    if not summary["sites"]:
        return ("No held-out site was measured.",)
    against = _against(summary, first, last)
    if first == last:
        return (against,)
    if not report.get("warm_up") or WARM_UP not in report["policies"][1:-1]:
        whom = "with training" if (first, last) == ("before", "after") else f"from `{first}` to `{last}`"
        return _rose(summary, first, last, whom), _did_not(summary, first, last), against
    warmed = _rose(summary, first, WARM_UP, "with the warm-up alone") + _fell(summary, first, WARM_UP)
    rose = _rose(summary, WARM_UP, last, "with RL, after the warm-up")
    return rose, _did_not(summary, WARM_UP, last), warmed, against


def _rose(summary: Mapping[str, Any], first: str, last: str, whom: str) -> str:
    told = _listed(_by_way(summary, first, last, 0))
    return f"Accuracy rose {whom}: {told}." if told else f"No accuracy clearly rose {whom}."


def _did_not(summary: Mapping[str, Any], first: str, last: str) -> str:
    same = _listed(_by_way(summary, first, last, 1))
    told = f"No clear change: {same}." if same else "Every accuracy clearly changed."
    return told + _fell(summary, first, last)


def _fell(summary: Mapping[str, Any], first: str, last: str) -> str:
    down = _listed(_by_way(summary, first, last, 2))
    return f" Fell: {down}." if down else ""


def _by_way(summary: Mapping[str, Any], first: str, last: str, kind: int) -> dict[str, list[str]]:
    """Return one of the three kinds of `_changes`, by the way of predicting."""
    return {how: _changes(summary, f"{how} {last}", f"{how} {first}")[kind] for how in ("reasoning", "direct")}


def _listed(by_way: Mapping[str, Sequence[str]]) -> str:
    """Return changes by the way of predicting.

    Example:
        >>> _listed({"reasoning": ["hard 0.2 → 56.8 %", "easy 18.9 → 25.3 %"], "direct": []})
        'with thinking, hard 0.2 → 56.8 %, easy 18.9 → 25.3 %'
    """
    ways = {"reasoning": "with thinking", "direct": "without thinking"}
    return "; ".join(f"{ways[how]}, {', '.join(told)}" for how, told in by_way.items() if told)


def _against(summary: Mapping[str, Any], first: str, last: str) -> str:
    """Return how far reasoning is ahead of the first policy's direct prediction, or behind it."""
    bands = _bands(summary, f"reasoning {last}", f"direct {first}")
    ahead = [f"{100 * change['value']:.1f} points at {name}" for name, change in bands if change["low"] > 0]
    behind = [f"{-100 * change['value']:.1f} points at {name}" for name, change in bands if change["high"] < 0]
    level = [name for name, change in bands if change["low"] <= 0 <= change["high"]]
    said = [f"{word} by {', '.join(told)}" for word, told in (("ahead", ahead), ("behind", behind)) if told]
    said += [f"not clearly different at {', '.join(level)}"] if level else []
    whom = {"before": "the untrained policy"}.get(first, f"`{first}`")
    return f"Against {whom} without thinking, thinking is {'; '.join(said)}."


def _changes(summary: Mapping[str, Any], reading: str, baseline: str) -> tuple[list[str], list[str], list[str]]:
    """Return the bands in which the reading is clearly above the baseline, not clearly different, and below it."""
    up, same, down = list[str](), list[str](), list[str]()
    for name, change in _bands(summary, reading, baseline):
        own, other = (100 * summary["readings"][of]["accuracy"][name]["value"] for of in (reading, baseline))
        kind = up if change["low"] > 0 else down if change["high"] < 0 else same
        kind.append(f"{name} {other:.1f} → {own:.1f} %")
    return up, same, down


def _bands(summary: Mapping[str, Any], reading: str, baseline: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the differences of the bands that have sites, hardest first."""
    pair = (reading, baseline)
    changes = next(c["bands"] for c in summary["differences"] if (c["reading"], c["baseline"]) == pair)
    return [(name, change) for name, change in reversed(changes.items()) if change is not None]

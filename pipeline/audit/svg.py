"""Histograms and a calibration plot as SVG without style attributes; colours are classes of assets/report.css."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 190, 48, 26, 30
NAMES = {"entropy": "entropy, nats", "nll": "loss, nats", "rank": "rank of the true token"}


def histogram(
    metric: str, edges: Sequence[float], counts: Mapping[str, Any], rules: Sequence[float], bands: Mapping[str, float]
) -> Markup:
    """Return a histogram of selectable and kept positions, with square-root heights so that rare values stay visible.

    Args:
        metric: One of `NAMES`.
        edges: Left edges of the bars; the last bar is open.
        counts: `selectable` and `kept`, one number per bar.
        rules: Thresholds of the rule, drawn as lines.
        bands: Thresholds of the difficulty bands, drawn as thin labelled lines.
    """
    highest = max([*counts["selectable"], 1])
    bar = (WIDTH - LEFT - 4) / len(edges)
    tall = HEIGHT - TOP - BOTTOM
    total, kept = sum(counts["selectable"]), sum(counts["kept"])
    parts = [
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="'
        f'{escape(NAMES[metric])}: {total:,} selectable positions, {kept:,} kept">'
    ]
    for tick in _ticks(highest):
        y = HEIGHT - BOTTOM - tall * math.sqrt(tick / highest)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 4}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{_short(tick)}</text>')
    for name, start in bands.items():
        x = LEFT + bar * _at(edges, start)
        parts.append(f'<line class="band" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x + 3:.1f}" y="{TOP - 3}">{escape(name)}</text>')
    for i, edge in enumerate(edges):
        selectable, of_these = counts["selectable"][i], counts["kept"][i]
        if not selectable:
            continue
        x = LEFT + bar * i
        span = f"{_number(edge)} – {_number(edges[i + 1])}" if i + 1 < len(edges) else f"{_number(edge)} and more"
        parts.append(f"<g><title>{span}: {selectable:,} selectable, {of_these:,} kept</title>")
        for kind, count in (("all", selectable), ("kept", of_these)):
            height = tall * math.sqrt(count / highest)
            y = HEIGHT - BOTTOM - height
            parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{bar - 1:.1f}" height="{height:.1f}"/>')
        parts.append("</g>")
    for edge in _tick_labels(edges):
        x = LEFT + bar * (_at(edges, edge) + (0.5 if metric == "rank" else 0))
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{_number(edge)}</text>')
    for threshold in rules:
        x = LEFT + bar * _at(edges, threshold)
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 14}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="rule" x="{x + 3:.1f}" y="{TOP - 16}">rule: {_number(threshold)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 4}" y1="{base}" y2="{base}"/></svg>')
    return Markup("".join(parts))


def calibration(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the mean surprise by bin of entropy as points, and a line where it would equal the mean entropy.

    Args:
        bins: `calibration.bins` of a certificate. A point is larger the more positions its bin has.
    """
    seen = [row for row in bins if row["positions"]]
    highest = max([2.8, *(max(row["surprise"], row["entropy"]) for row in seen)])
    across, tall = (WIDTH - LEFT - 4) / 2.8, HEIGHT - TOP - BOTTOM
    most, base = max([1, *(row["positions"] for row in seen)]), HEIGHT - BOTTOM

    def place(entropy: float, surprise: float) -> tuple[float, float]:
        return LEFT + across * min(entropy, 2.8), base - tall * surprise / highest

    total = sum(row["positions"] for row in seen)
    parts = [
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="mean surprise by entropy, {total:,} positions">'
    ]
    step = max(1, round(highest / 4))
    for tick in range(0, int(highest) + 1, step):
        _, y = place(0, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 4}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick}</text>')
    for entropy in (0, 0.5, 1, 1.5, 2, 2.5):
        x, _ = place(entropy, 0)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{entropy:g}</text>')
    (x1, y1), (x2, y2) = place(0, 0), place(2.8, 2.8)
    parts.append(f'<line class="rule" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for row in seen:
        x, y = place(row["entropy"], row["surprise"])
        means = f"entropy {_number(row['entropy'])}, surprise {_number(row['surprise'])} nats"
        says = f"{row['positions']:,} positions: {means}"
        radius = 2.5 + 5 * math.sqrt(row["positions"] / most)
        parts.append(f'<circle class="kept" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{says}</title></circle>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 4}" y1="{base}" y2="{base}"/></svg>')
    return Markup("".join(parts))


def share(part: int, whole: int) -> Markup:
    """Return a bar filled to the share `part` of `whole`."""
    width = 100 * part / whole if whole else 0
    return Markup(
        '<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width:.2f}" height="6"/></svg>'
    )


def _at(edges: Sequence[float], value: float) -> float:
    """Return the position of a value among the edges, in bars."""
    for i in range(len(edges) - 1):
        if value < edges[i + 1]:
            return i + (value - edges[i]) / (edges[i + 1] - edges[i])
    return len(edges) - 1


def _ticks(highest: int) -> list[int]:
    """Return three round numbers up to `highest`.

    Example:
        >>> _ticks(43_000)
        [400, 4000, 40000]
    """
    digit = 10 ** int(math.log10(highest))
    top = highest // digit * digit
    return sorted({max(1, top // 100), max(1, top // 10), top})


def _tick_labels(edges: Sequence[float]) -> list[float]:
    return list(edges[::10]) if edges[1] < 1 else list(edges[::2])


def _short(count: int) -> str:
    """Abbreviate a count with k or M.

    Example:
        >>> _short(40_000), _short(2_000_000), _short(7)
        ('40k', '2M', '7')
    """
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:g}{unit}"
    return str(count)


def _number(value: float) -> str:
    return f"{value:g}"

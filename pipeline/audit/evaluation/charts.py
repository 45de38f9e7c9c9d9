"""Charts of accuracy and of forecasts as SVG without style attributes; colours are classes of assets/evaluation.css."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from pipeline.evaluation.plots import Point

WIDTH = 460
_LEFT, _RIGHT, _ROW = 150, 14, 26


def dots(rows: Mapping[str, Mapping[str, Any] | None], blue: Collection[str], highest: float) -> Markup:
    """Return a dot with its interval for each row, on one axis from 0 to `highest` (a share).

    Args:
        rows: Estimates by name; None where there are no sites.
        blue: Names of those that are blue; the others are grey.
        highest: Right end of the axis.
    """
    height = _ROW * len(rows) + 26
    wide = WIDTH - _LEFT - _RIGHT
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(_spoken(rows))}">']
    for tick in _ticks(highest):
        x = _LEFT + wide * tick / highest
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 20}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 5}" text-anchor="middle">{100 * tick:.0f} %</text>')
    for i, (name, found) in enumerate(rows.items()):
        y, kind = _ROW * i + _ROW / 2 + 4, "reasoning" if name in blue else "direct"
        parts.append(f'<text class="label" x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        if found is None:
            continue
        low, value, high = (_LEFT + wide * found[part] / highest for part in ("low", "value", "high"))
        parts.append(f'<g class="{kind}"><title>{escape(name)}: {_percent(found)}</title>')
        parts.append(f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<circle cx="{value:.1f}" cy="{y:.1f}" r="5"/></g>')
    return Markup("".join([*parts, "</svg>"]))


def progress(points: Sequence[Point], direct: float | None, highest: float) -> Markup:
    """Return accuracy by reasoning over steps with its intervals, and direct accuracy before training as a dashed line.

    Args:
        points: At least one measurement.
        direct: Accuracy of the untrained policy without reasoning.
        highest: Upper end of the axis, a share.
    """
    height, left, bottom, last = 210, 46, 30, max(points[-1].step, 1)

    def at(step: int, share: float) -> tuple[float, float]:
        return left + (WIDTH - left - _RIGHT) * step / last, 8 + (height - bottom - 8) * (1 - share / highest)

    told = ", ".join(f"step {p.step}: {100 * p.value:.1f} %" for p in points)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{told}">']
    for tick in _ticks(highest):
        y = at(0, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.0f} %</text>')
    for step in sorted({points[0].step, points[len(points) // 2].step, points[-1].step}):
        parts.append(
            f'<text class="tick" x="{at(step, 0)[0]:.1f}" y="{height - 10}" text-anchor="middle">{step}</text>'
        )
    around = [at(p.step, p.high) for p in points] + [at(p.step, p.low) for p in reversed(points)]
    parts.append(f'<polygon class="area" points="{_path(around)}"/>')
    if direct is not None:
        y = at(0, direct)[1]
        parts.append(f'<line class="baseline" x1="{left}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        end = f'x="{WIDTH - _RIGHT}" y="{y - 6:.1f}" text-anchor="end"'
        parts.append(f'<text class="baseline" {end}>direct before, {100 * direct:.1f} %</text>')
    parts.append(f'<polyline class="curve" points="{_path([at(p.step, p.value) for p in points])}"/>')
    for p in points:
        x, y = at(p.step, p.value)
        title = f"step {p.step}: {100 * p.value:.1f} % [{100 * p.low:.1f}, {100 * p.high:.1f}]"
        parts.append(f'<circle class="curve" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{title}</title></circle>')
    return Markup("".join([*parts, "</svg>"]))


def forecasts(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the share of groups with a gradient over the forecast, by bin, with a line where both are equal.

    Args:
        bins: those of `pipeline.evaluation.foretold.calibration`.
    """
    height, left, right, bottom = 260, 46, 26, 42

    def at(expected: float, share: float) -> tuple[float, float]:
        return left + (WIDTH - left - right) * expected, 8 + (height - bottom - 8) * (1 - share)

    told = "; ".join(f"{100 * row['expected']:.0f} % foretold: {_percent(row['observed'])}" for row in bins)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{told}">']
    for tick in _ticks(1.0):
        (x, base), (_, y) = at(tick, 0), at(0, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{100 * tick:.0f} %</text>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{base + 16:.1f}" text-anchor="middle">{100 * tick:.0f} %</text>'
        )
    middle = f'x="{at(0.5, 0)[0]:.1f}" y="{height - 6}" text-anchor="middle"'
    parts.append(f'<text class="tick" {middle}>foretold probability of a gradient</text>')
    (x1, y1), (x2, y2) = at(0, 0), at(1, 1)
    parts.append(f'<line class="baseline" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for row in bins:
        (x, low), (_, y), (_, high) = (at(row["expected"], row["observed"][part]) for part in ("low", "value", "high"))
        title = f"{row['groups']:,} groups, {100 * row['expected']:.0f} % foretold: {_percent(row['observed'])}"
        parts.append(f'<g class="reasoning"><title>{title}</title>')
        parts.append(f'<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/></g>')
    return Markup("".join([*parts, "</svg>"]))


def axis_end(shares: Sequence[float]) -> float:
    """Return the end of an axis that holds the shares: a multiple of 0.1, or of 0.02 for small ones.

    Example:
        >>> axis_end([0.41, 0.2]), axis_end([0.03]), axis_end([])
        (0.5, 0.04, 0.1)
    """
    most = max(shares, default=0.1)
    step = 0.1 if most > 0.1 else 0.02
    return min(1.0, round(step * (int(most / step) + 1), 2)) if shares else 0.1


def _ticks(highest: float) -> list[float]:
    return [highest * i / 4 for i in range(5)] if round(100 * highest) % 4 == 0 else [highest * i / 5 for i in range(6)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['value']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _spoken(rows: Mapping[str, Mapping[str, Any] | None]) -> str:
    return "; ".join(f"{name}: {_percent(found) if found else 'no sites'}" for name, found in rows.items())

"""Parts of the what-if page: the threshold that the slider sets, the chart above it, the lines for the manifest."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import yaml

from pipeline.audit.browse.column_index import ColumnIndex
from pipeline.audit.browse.index import GRID
from pipeline.config.selection import BandsConfig
from pipeline.selection.sites import BANDS

STEP = 5
"""Grid steps of the index per bar of the chart: 0.05 nats."""

_THRESHOLD = re.compile(r"\bentropy(\s*>=?\s*)(\d+(?:\.\d+)?)")


def threshold_of(where: str) -> float | None:
    """Return the number that a rule requires entropy to exceed; None if it has no such threshold.

    Example:
        >>> threshold_of("field = 'solution' AND entropy > 1.25"), threshold_of("nll > 2")
        (1.25, None)
    """
    found = _THRESHOLD.search(where)
    return float(found[2]) if found else None


def with_threshold(where: str, entropy: float) -> str:
    """Return the rule with another threshold; a rule without one gets it as an additional condition.

    Example:
        >>> with_threshold("entropy > 1.0 AND nll < 3", 1.5), with_threshold("rank > 0 OR nll > 2", 0.5)
        ('entropy > 1.5 AND nll < 3', 'entropy > 0.5 AND (rank > 0 OR nll > 2)')
        >>> with_threshold("true", 0.5)
        'entropy > 0.5'
    """
    number = f"{entropy:.2f}".rstrip("0").rstrip(".") or "0"
    if _THRESHOLD.search(where):
        return _THRESHOLD.sub(lambda found: f"entropy{found[1]}{number}", where, count=1)
    return f"entropy > {number}" if where.strip().lower() == "true" else f"entropy > {number} AND ({where})"


def manifest_lines(split: str, where: str) -> str:
    """Return lines to paste into a manifest.

    Example:
        >>> print(manifest_lines("train", "entropy > 1.5"), end="")
        select:
          where: entropy > 1.5
    """
    key = "where" if split == "train" else "validation_where"
    return yaml.safe_dump({"select": {key: where}}, allow_unicode=True, width=1000)


@dataclass(frozen=True)
class Bar:
    """Bar of the chart; x, y, width and height in a box of 1000 by 100."""

    entropy: float
    count: int
    kept: bool
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """Histogram of the entropy of a split's positions; heights are logarithmic."""

    bars: list[Bar]
    bands: list[tuple[str, float]]
    """Name and x coordinate of each band's threshold."""
    most: float
    """Entropy at the right edge, the maximum of the slider."""


def chart(store: ColumnIndex, split: str, bands: BandsConfig, threshold: float | None) -> Chart:
    """Return the chart, with bars from `threshold` on marked as kept."""
    count_B = np.diff(store.up_to(split)[::STEP])
    last = int(np.flatnonzero(count_B)[-1]) + 1 if count_B.any() else 1
    last = max(last, int(np.ceil((bands.hard + 0.1) * 100 / STEP)))
    height_B = 100 * np.log1p(count_B[:last]) / max(np.log1p(count_B.max(initial=1)), 1)
    width = 1000 / last
    bars = [
        Bar(float(GRID[b * STEP]), int(count_B[b]), threshold is None or bool(GRID[b * STEP] >= np.float32(threshold)),
            b * width + 1, 100 - float(height), width - 2, float(height))
        for b, height in enumerate(height_B)
    ]  # fmt: skip
    most = last * STEP / 100
    return Chart(bars, [(band, 1000 * getattr(bands, band) / most) for band in BANDS], most)

"""Parts of the what-if page: the threshold that the slider sets, the chart above it, the lines for the manifest."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.audit.browse.column_index import ColumnIndex
from pipeline.audit.browse.compare import BAR_EDGES, STEP
from pipeline.config.selection import BandsConfig
from pipeline.selection.sites import BANDS

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
    """Its positions are above this entropy, or at it in the first bar."""
    high: float | None
    """They are at most at this entropy; None in the last bar of the scale."""
    count: int
    kept: int
    """Number of its positions that the whole rule keeps."""
    x: float
    width: float
    height: float
    kept_height: float

    @property
    def words(self) -> str:
        """Return what the bar shows, as a sentence."""
        until = f"to {self.high:.2f}" if self.high is not None else "and more"
        return f"{self.entropy:.2f} {until} nats: {self.kept:,} kept of {self.count:,} positions"


@dataclass(frozen=True)
class Chart:
    """Histogram of the entropy of a split's positions; heights are logarithmic."""

    bars: list[Bar]
    bands: list[tuple[str, float]]
    """Name and x coordinate of each band's threshold."""
    ticks: list[tuple[str, float]]
    """Number (nats) and x coordinate of each label of the axis."""
    most: float
    """Entropy at the right edge, the maximum of the slider."""


def chart(store: ColumnIndex, split: str, bands: BandsConfig, kept_B: NDArray[np.int64] | None) -> Chart:
    """Return the chart of all positions, and within each bar those that a rule keeps.

    Args:
        store: The index.
        split: The split whose positions are shown.
        bands: Thresholds of the bands.
        kept_B: Number of positions kept in each bar (`Comparison.kept_B`); None if it is not known.
    """
    count_B = np.diff(store.up_to(split)[::STEP], append=store.positions(split))
    count_B[0] += store.up_to(split)[0]
    kept_B = np.zeros_like(count_B) if kept_B is None else kept_B
    last = int(np.flatnonzero(count_B)[-1]) + 1 if count_B.any() else 1
    last = max(last, int(np.ceil((bands.hard + 0.1) * 100 / STEP)))
    scale = 100 / max(np.log1p(count_B.max(initial=1)), 1)
    width = 1000 / last
    bars = [
        Bar(float(BAR_EDGES[b]), float(BAR_EDGES[b + 1]) if b + 1 < len(BAR_EDGES) else None, int(count_B[b]),
            int(kept_B[b]), b * width + 1, width - 2, float(scale * np.log1p(count_B[b])),
            float(scale * np.log1p(kept_B[b])))
        for b in range(min(last, len(BAR_EDGES)))
    ]  # fmt: skip
    most = last * STEP / 100
    ticks = [(f"{tick / 2:g}", 500 * tick / most) for tick in range(int(2 * most) + 1)]
    return Chart(bars, [(band, 1000 * getattr(bands, band) / most) for band in BANDS], ticks, most)

"""Results reported in the paper, for comparison with measured ones (arXiv 2506.08007, version 1)."""

from __future__ import annotations

import re
from typing import Any

from pipeline.config.corpus import CorpusConfig
from pipeline.config.selection import BandsConfig

TABLE_1 = {
    "Qwen2.5-14B, direct": (41.90, 30.03, 20.65),
    "R1-Distill-Qwen-14B, direct": (41.60, 29.46, 20.43),
    "R1-Distill-Qwen-14B, reasoning": (3.31, 1.66, 1.41),
    "RPT-14B, reasoning": (45.11, 33.56, 23.75),
}
"""Next-token accuracy, %, on easy, medium and hard sites of 200 held-out OmniMATH problems."""


def published_rows(corpus: CorpusConfig, bands: BandsConfig) -> dict[str, Any] | None:
    """Return the paper's Table 1 if the corpus is OmniMATH and the bands are the paper's; otherwise None.

    Example:
        >>> published_rows(CorpusConfig(source="hf://datasets/KbsdJames/Omni-MATH"), BandsConfig())["rows"][
        ...     "RPT-14B, reasoning"
        ... ]
        {'easy > 0.5': 45.11, 'medium > 1': 33.56, 'hard > 1.5': 23.75}
        >>> published_rows(CorpusConfig(source="gsm8k.jsonl"), BandsConfig()) is None
        True
    """
    if "omnimath" not in re.sub(r"[^a-z]", "", corpus.source.lower()) or bands != BandsConfig():
        return None
    header = [f"{band} > {above:g}" for band, above in bands.model_dump().items()]
    return {
        "title": "The paper's Table 1",
        "rows": {name: dict(zip(header, row, strict=True)) for name, row in TABLE_1.items()},
        "caveat": (
            "The paper's rows are of another sample of sites: 200 problems held out by its authors, bands by "
            "R1-Distill-Qwen-14B; decoding and intervals are not given, and RPT-14B was not read directly."
        ),
    }

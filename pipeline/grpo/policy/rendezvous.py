"""What a rank knows from its environment, before the process group has started. Imports no torch."""

from __future__ import annotations

import os

MEETING_FILE = "RPT_MEETING_FILE"
"""Environment variable with the path of a file store, by which ranks of one machine meet without opening a port."""


def is_first_rank() -> bool:
    """Return True on rank 0, which alone writes."""
    return os.environ.get("RANK", "0") == "0"

"""The hashes belong to the pins: each is of the version that the lock file names, and nothing is without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PIN = r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)"
HASHED = PIN + r"[^\n]*\\\n    --hash=sha256:[0-9a-f]{64}"


def found(pattern: str, path: Path) -> dict[str, str]:
    """Version by name, as the index spells names."""
    pins = re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}


@pytest.mark.parametrize("of", ["requirements", "requirements-dev"])
def test_every_pin_but_torch_has_its_hashes(repository: Path, of: str) -> None:
    pins = found(PIN, repository / f"{of}.lock")
    pins.pop("torch", None)  # each machine has a build of its own
    assert found(HASHED, repository / f"{of}.hashes") == pins, "run `make pins`"

"""The hashes belong to the pins: each is of the version that the lock file names, and nothing is without."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_PIN = re.compile(r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)", re.MULTILINE)
_HASHED = re.compile(
    r"^([A-Za-z0-9][\w.-]*)==([^\s;]+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+)", re.MULTILINE
)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("of", ["requirements", "requirements-dev"])
def test_every_pin_but_torch_has_its_hashes(repository: Path, of: str) -> None:
    pins = {normal(name): version for name, version in _PIN.findall((repository / f"{of}.lock").read_text())}
    hashed = {normal(name): version for name, version, _ in _HASHED.findall((repository / f"{of}.hashes").read_text())}
    pins.pop("torch", None)
    assert hashed == pins, "run `make pins`"

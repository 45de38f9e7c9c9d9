"""A corpus that was audited, and the browser fixtures of the live page's tests."""

from __future__ import annotations

import pytest

from tests.audit.corpus import Audited, build
from tests.browser.conftest import axe, browser, chromium

__all__ = ["axe", "browser", "chromium"]


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """The corpus of `corpus.py`, its selections, and the report of the first one."""
    return build(tmp_path_factory.mktemp("audit"))

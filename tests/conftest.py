"""Shared fixtures. `RPT_REAL_DATA` points to a folder of real corpora, tokenizers and weights; unset, tests skip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers of pytest-xdist share the cores, with the programs they start

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # tests never time: a machine under load is no failure


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, or a skip that says how to get one."""
    folder = os.environ.get("RPT_REAL_DATA")
    if not folder:
        pytest.skip("RPT_REAL_DATA is not set: tests on real corpora, tokenizers and weights are skipped")
    return Path(folder)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).parent.parent


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Look for doctests in the packages only: importing a helper of tests may change this process or run a program."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a module's fixture run on one worker of pytest-xdist, so that it is made once."""
    for item in items:
        fixtures = getattr(item, "_fixtureinfo", None)
        shared = fixtures and any(made[-1].scope == "module" for made in fixtures.name2fixturedefs.values() if made)
        if shared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))

"""Local workers: what they are given, and what they leave behind."""

from __future__ import annotations

import os

from pipeline.core.executor import LocalExecutor


def _threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def test_workers_have_their_threads_and_the_caller_keeps_its_own() -> None:
    before = dict(os.environ)
    given = set(LocalExecutor(64).map(_threads, range(2), planned=64))
    assert given == {"1"}
    assert dict(os.environ) == before

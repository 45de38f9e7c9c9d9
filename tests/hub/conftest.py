"""The Hub that the tests of whole commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub.products import stocked_hub
from tests.hub.server import Hub


@pytest.fixture
def stocked() -> Iterator[Hub]:
    with stocked_hub() as hub:
        yield hub

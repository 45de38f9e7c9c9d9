"""Where in a corpus a run has sampled: positions with rollouts, by document."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.audit.board.rollout_index import RolloutIndex


class RolloutPlaces:
    """Positions with stored rollouts; what a running training adds is taken in."""

    def __init__(self, index: RolloutIndex) -> None:
        self._index = index
        self._taken = 0
        self._positions: dict[str, set[int]] = {}

    def by_document(self) -> Mapping[str, set[int]]:
        """Return the positions by document id, of the files that were read so far."""
        self._index.refresh(0.1)
        site_ids = self._index.site_ids[:]
        for site_id in site_ids[self._taken :]:
            doc_id, _, position = site_id.rpartition("-")
            if position.isascii() and position.isdigit() and len(position) < 10:
                self._positions.setdefault(doc_id, set()).add(int(position))
        self._taken = len(site_ids)
        return self._positions

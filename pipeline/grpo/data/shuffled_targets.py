"""The shuffled-target control: training that cannot improve prediction, to measure gains with other causes.

The other control, `task.reward: format_only`, is with the rewards (`rollout/rewards.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import polars as pl

from pipeline.config.errors import UserError
from pipeline.config.recipe import Recipe
from pipeline.core.artifact import InputFile
from pipeline.core.random_keys import random_key
from pipeline.shards.reader import ShardReader, Site


class ShuffledTargets:
    """Replaces a site's target by that of another training site of its band, a new one each time it is drawn.

    The context then says nothing about the target, so the expected reward of any prediction is chance within the band.
    Because the target changes with every draw, it cannot be memorised either.
    """

    def __init__(self, files: Sequence[InputFile], recipe: Recipe, pass_rates: pl.DataFrame | None = None) -> None:
        """Prepare the control; sites are read when they are first needed.

        Args:
            files: the `train` shards.
            recipe: the recipe, whose `sites.where` selects the sites and whose seed selects the targets.
            pass_rates: as for `ShardReader`.
        """
        self._files, self._pass_rates = files, pass_rates
        self._where, self._seed = recipe.sites.where, recipe.seed
        self._bands: dict[str, ShardReader] = {}

    def __call__(self, site: Site, number: int) -> Site:
        """Return the site with the target, continuation and boundaries of another one.

        Args:
            site: a training site.
            number: number of the draw, counted over the whole run.

        Raises:
            UserError: its band has no other site.
        """
        sites = self._of_band(site.band)
        if len(sites) == 1:
            raise UserError(
                "shuffled targets need at least two sites per band",
                where=f"band '{site.band}'",
                hint="widen `sites.where`",
            )
        tries = (random_key("shuffled", self._seed, number, site.site_id, i) % len(sites) for i in count())
        other = next(other for index in tries if (other := sites[index]).site_id != site.site_id)
        return replace(site, target=other.target, continuation=other.continuation, boundaries=other.boundaries)

    def _of_band(self, band: str) -> ShardReader:
        if band not in self._bands:
            where = f"({self._where}) AND (band = '{band}')"
            self._bands[band] = ShardReader(self._files, where, pass_rates=self._pass_rates)
        return self._bands[band]

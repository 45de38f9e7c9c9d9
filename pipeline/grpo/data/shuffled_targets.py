"""Controls: training that must not help, to see what of a rise is no prediction.

`task.reward: format_only` stands with the other rewards (`reward.py`); here are shuffled targets.
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
    """Gives a site what follows another training site of its band, another one each time it is drawn.

    Its context then says nothing about its target, so that the expected reward of any prediction is what it earns at
    any site of the band: chance. Drawn anew every time, there is nothing to learn by heart either.
    """

    def __init__(self, files: Sequence[InputFile], recipe: Recipe, pass_rates: pl.DataFrame | None = None) -> None:
        """
        Args:
            files: the `train` shards.
            recipe: its `sites.where` says which sites there are, its seed which are taken.
            pass_rates: as for `ShardReader`.
        """
        self._files, self._pass_rates = files, pass_rates
        self._where, self._seed = recipe.sites.where, recipe.seed
        self._bands: dict[str, ShardReader] = {}

    def __call__(self, site: Site, number: int) -> Site:
        """The site with the target, continuation and boundaries of another one.

        Args:
            site: a training site.
            number: of the draw, counted over the whole run.

        Raises:
            UserError: its band has no other site.
        """
        sites = self._of_band(site.band)
        if len(sites) == 1:
            raise UserError(
                "shuffled targets need two sites of a band",
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

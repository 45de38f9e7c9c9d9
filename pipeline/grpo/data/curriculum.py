"""Which sites a step draws: those that the recipe's phase of that step names, in an order that is theirs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import polars as pl

from pipeline.config.recipe import Recipe
from pipeline.core.artifact import InputFile
from pipeline.grpo.data.shuffled_targets import ShuffledTargets
from pipeline.grpo.rollout.sampled_site import SampledSite
from pipeline.shards.order import sites_of_step
from pipeline.shards.reader import ShardReader, Site


class Curriculum:
    """The sites of every phase. All phases of the recipe are opened at once, so that one without sites fails early.

    Raises:
        UserError: a phase names an unknown column, or matches no site.
    """

    def __init__(self, files: Sequence[InputFile], recipe: Recipe, pass_rates: pl.DataFrame | None = None) -> None:
        phases = sorted(recipe.curriculum, key=lambda phase: phase.until_step)
        self._per_draw, self._seed = recipe.rollout.sites_per_step, recipe.seed
        self._until = [phase.until_step for phase in phases]
        expressions = [_both(recipe.sites.where, phase.where) for phase in phases] + [recipe.sites.where]
        readers = {where: ShardReader(files, where, pass_rates=pass_rates) for where in dict.fromkeys(expressions)}
        self._readers = [readers[where] for where in expressions]
        self._shuffled = ShuffledTargets(files, recipe, pass_rates) if recipe.task.targets == "shuffled" else None

    def sites(self) -> Iterator[Site]:
        """Yield every site that any phase can draw."""
        seen: set[int] = set()
        for reader in self._readers:
            if id(reader) not in seen:
                seen.add(id(reader))
                yield from (reader[i] for i in range(len(reader)))

    def draw(self, step: int, number: int, before: Sequence[SampledSite] = ()) -> list[SampledSite]:
        """Draw the sites of one draw.

        Args:
            step: the step, which selects the phase.
            number: number of the draw, counted over the whole run; consecutive draws pass through the phase's sites.
            before: sites that the step has drawn already.
        """
        reader = self._reader_of(step)
        seen = Counter(draw.site.site_id for draw in before)
        draws = []
        for index in sites_of_step(len(reader), self._seed, number, self._per_draw):
            site = reader[int(index)]
            draws.append(SampledSite(self._shuffled(site, number) if self._shuffled else site, seen[site.site_id]))
            seen[site.site_id] += 1
        return draws

    def sample(self, count: int, seed: int) -> list[SampledSite]:
        """Return `count` different sites that the first step may draw; all of them, if there are fewer.

        They depend on `seed` alone, not on the run's draws, which stay as they are.
        """
        reader = self._reader_of(0)
        rows = sites_of_step(len(reader), seed, 0, min(count, len(reader)))
        sites = [reader[int(row)] for row in rows]
        return [SampledSite(self._shuffled(site, 0) if self._shuffled else site, 0) for site in sites]

    def _reader_of(self, step: int) -> ShardReader:
        return self._readers[sum(step >= until for until in self._until)]


def _both(first: str, second: str) -> str:
    """Return the conjunction of two filter expressions.

    Example:
        >>> _both("true", "entropy > 1"), _both("entropy > 1", "field = 'a'")
        ('entropy > 1', "(entropy > 1) AND (field = 'a')")
    """
    terms = [term for term in (first, second) if term != "true"]
    return " AND ".join(f"({term})" for term in terms) if len(terms) > 1 else "".join(terms) or "true"

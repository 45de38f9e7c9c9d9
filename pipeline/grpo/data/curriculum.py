"""Which sites a step draws: those that the recipe's phase of that step names, in an order that is theirs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import polars as pl

from pipeline.config.recipe import Recipe
from pipeline.core.artifact import InputFile
from pipeline.core.random_keys import random_unit
from pipeline.grpo.data.forecast import enough, foretell
from pipeline.grpo.data.foretold_draw import inclusion, systematic
from pipeline.grpo.data.outcomes import Outcomes
from pipeline.grpo.data.shuffled_targets import ShuffledTargets
from pipeline.grpo.data.site_features import site_features
from pipeline.grpo.rollout.sampled_site import Pick, SampledSite
from pipeline.shards.order import sites_of_step
from pipeline.shards.reader import ShardReader, Site

FEATURES_KEPT = 1 << 15
"""Most sites whose features are kept in memory; they are read again when they are needed again."""


class Curriculum:
    """The sites of every phase. All phases of the recipe are opened at once, so that one without sites fails early.

    Raises:
        UserError: a phase names an unknown column, or matches no site.
    """

    def __init__(self, files: Sequence[InputFile], recipe: Recipe, pass_rates: pl.DataFrame | None = None) -> None:
        phases = sorted(recipe.curriculum, key=lambda phase: phase.until_step)
        self._per_draw, self._seed, self._rule = recipe.rollout.sites_per_step, recipe.seed, recipe.sites
        self._until = [phase.until_step for phase in phases]
        expressions = [_both(recipe.sites.where, phase.where) for phase in phases] + [recipe.sites.where]
        readers = {where: ShardReader(files, where, pass_rates=pass_rates) for where in dict.fromkeys(expressions)}
        self._readers = [readers[where] for where in expressions]
        self._shuffled = ShuffledTargets(files, recipe, pass_rates) if recipe.task.targets == "shuffled" else None
        self._features = lru_cache(FEATURES_KEPT)(lambda phase, row: site_features(self._readers[phase][row]))

    def sites(self) -> Iterator[Site]:
        """Yield every site that any phase can draw."""
        seen: set[int] = set()
        for reader in self._readers:
            if id(reader) not in seen:
                seen.add(id(reader))
                yield from (reader[i] for i in range(len(reader)))

    def draw(
        self, step: int, number: int, before: Sequence[SampledSite] = (), outcomes: Outcomes = ()
    ) -> list[SampledSite]:
        """Draw the sites of one draw.

        Args:
            step: the step, which selects the phase.
            number: number of the draw, counted over the whole run; consecutive draws pass through the phase's sites.
            before: sites that the step has drawn already.
            outcomes: what became of the groups of earlier steps; read by `sites: {by: foretold}` alone.
        """
        return self.take(self.pick(step, number, outcomes), number, before)

    def pick(self, step: int, number: int, outcomes: Outcomes = ()) -> list[Pick]:
        """Return which sites `draw` takes."""
        phase, take = self._phase_of(step), self._per_draw
        available = len(self._readers[phase])
        if self._rule.by == "uniform":
            return [Pick(phase, row) for row in sites_of_step(available, self._seed, number, take).tolist()]
        candidates = max(take, min(self._rule.candidates * take, available))
        rows_M = sites_of_step(available, self._seed, number, candidates).tolist()
        if not enough(outcomes):
            return [Pick(phase, row) for row in rows_M[:take]]
        seen_N = [self._features(outcome.phase, outcome.row) for outcome in outcomes]
        probability_M = foretell(outcomes, seen_N, [self._features(phase, row) for row in rows_M], step)
        inclusion_M = inclusion(probability_M, take, self._rule.floor)
        chosen = systematic(inclusion_M, random_unit("foretold", self._seed, number)).tolist()
        importance_M = inclusion_M * candidates / take
        return [Pick(phase, rows_M[i], float(importance_M[i]), float(probability_M[i])) for i in chosen]

    def take(self, picks: Sequence[Pick], number: int, before: Sequence[SampledSite] = ()) -> list[SampledSite]:
        """Return the sites that were picked; `number` and `before` as for `draw`."""
        seen = Counter(draw.site.site_id for draw in before)
        draws = []
        for pick in picks:
            site = self._readers[pick.phase][pick.row]
            shown = self._shuffled(site, number) if self._shuffled else site
            draws.append(SampledSite(shown, seen[site.site_id], pick))
            seen[site.site_id] += 1
        return draws

    def sample(self, count: int, seed: int) -> list[SampledSite]:
        """Return `count` different sites that the first step may draw; all of them, if there are fewer.

        They depend on `seed` alone, not on the run's draws, which stay as they are.
        """
        phase = self._phase_of(0)
        available = len(self._readers[phase])
        rows = sites_of_step(available, seed, 0, min(count, available)).tolist()
        return self.take([Pick(phase, row) for row in rows], number=0)

    def _phase_of(self, step: int) -> int:
        return sum(step >= until for until in self._until)


def _both(first: str, second: str) -> str:
    """Return the conjunction of two filter expressions.

    Example:
        >>> _both("true", "entropy > 1"), _both("entropy > 1", "field = 'a'")
        ('entropy > 1', "(entropy > 1) AND (field = 'a')")
    """
    terms = [term for term in (first, second) if term != "true"]
    return " AND ".join(f"({term})" for term in terms) if len(terms) > 1 else "".join(terms) or "true"

from __future__ import annotations

import pytest

from pipeline.config.errors import UserError
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.task import CurriculumPhase, SitesConfig
from pipeline.config.training import RolloutConfig
from pipeline.core.artifact import Record
from pipeline.grpo.data.curriculum import Curriculum
from tests.grpo.colours import publish_shards
from tests.toys import byte_level_tokenizer


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("shards")
    return publish_shards(folder, byte_level_tokenizer(folder / "tokenizer", ["a text"]), sites=30)


def recipe_of(per_step: int, *phases: tuple[int, str], where: str = "true") -> Recipe:
    curriculum = tuple(CurriculumPhase(until_step=until, where=condition) for until, condition in phases)
    rollout, sites = RolloutConfig(sites_per_step=per_step), SitesConfig(where=where)
    return Recipe(name="a", policy=PolicyConfig(model="b"), curriculum=curriculum, rollout=rollout, sites=sites)


def test_each_phase_draws_its_own_sites(shards: Record) -> None:
    recipe = recipe_of(6, (4, "band = 'easy'"), (2, "entropy > 2.5"), where="entropy < 2.5 OR entropy > 2.9")
    curriculum = Curriculum(shards.files("train"), recipe)
    entropies = [{draw.site.entropy for draw in curriculum.draw(step, step)} for step in range(6)]
    assert entropies[:4] == [{3.0}, {3.0}, {1.0}, {1.0}]
    assert all(len(found) > 1 for found in entropies[4:])


def test_consecutive_draws_pass_through_all_sites(shards: Record) -> None:
    curriculum = Curriculum(shards.files("train"), recipe_of(7))
    drawn = [draw.site.site_id for number in range(30) for draw in curriculum.draw(0, number)]
    assert all(drawn.count(site_id) == 7 for site_id in set(drawn)) and len(set(drawn)) == 30


def test_a_site_drawn_again_in_a_step_is_told_apart(shards: Record) -> None:
    curriculum = Curriculum(shards.files("train"), recipe_of(40))
    first = curriculum.draw(0, 0)
    second = curriculum.draw(0, 1, first)
    keys = [(draw.site.site_id, draw.repeat) for draw in [*first, *second]]
    assert len(set(keys)) == 80 and {repeat for _, repeat in keys} == {0, 1, 2}


def test_a_phase_that_matches_nothing_fails_at_once(shards: Record) -> None:
    with pytest.raises(UserError, match="entropy > 99"):
        Curriculum(shards.files("train"), recipe_of(4, (3, "entropy > 99")))

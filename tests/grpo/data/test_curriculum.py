from __future__ import annotations

import pytest

from pipeline.config.errors import UserError
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.task import CurriculumPhase, SitesConfig, TaskConfig
from pipeline.config.training import RolloutConfig
from pipeline.core.artifact import Record
from pipeline.grpo.data.curriculum import Curriculum
from pipeline.grpo.data.outcomes import GroupOutcome
from pipeline.grpo.rollout.sampled_site import Pick
from tests.grpo.colours import publish_shards
from tests.toys import byte_level_tokenizer


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("shards")
    return publish_shards(folder, byte_level_tokenizer(folder / "tokenizer", ["a text"]), sites=30)


def recipe_of(per_step: int, *phases: tuple[int, str], where: str = "true", by: str = "uniform") -> Recipe:
    curriculum = tuple(CurriculumPhase(until_step=until, where=condition) for until, condition in phases)
    rollout, sites = RolloutConfig(sites_per_step=per_step), SitesConfig(where=where, by=by, candidates=3)  # type: ignore[arg-type]
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


RED = tuple(GroupOutcome(step, 0, row, row % 4 == 0, 0.5) for step in range(4) for row in range(30))
"""Of the thirty sites those whose colour is red had a gradient, the others had none."""


def test_while_nothing_is_foretold_the_draw_is_uniform(shards: Record) -> None:
    curriculum = Curriculum(shards.files("train"), recipe_of(10, by="foretold"))
    drawn = [draw for number in range(30) for draw in curriculum.draw(0, number, outcomes=RED[:20])]
    assert {(draw.pick.importance, draw.pick.foretold) for draw in drawn} == {(1.0, None)}
    counts = [sum(draw.pick.row == row for draw in drawn) for row in range(30)]
    assert min(counts) > 2 and max(counts) < 20, "binomial, mean 10, standard deviation 2.6"


def test_what_is_like_what_had_a_gradient_is_drawn_first(shards: Record) -> None:
    curriculum = Curriculum(shards.files("train"), recipe_of(7, by="foretold"))
    drawn = [draw for number in range(60) for draw in curriculum.draw(4, number, outcomes=RED)]
    red = [draw for draw in drawn if draw.site.target == b" red"]
    assert len(red) / len(drawn) > 0.6, "8 of 30 sites are red; 0.8 + 0.2 * 8 / 30 less what a pool of 21 lacks"
    assert min(draw.pick.foretold for draw in red) > 0.5 > max(draw.pick.foretold for draw in drawn if draw not in red)
    assert sum(1 / draw.pick.importance for draw in drawn) / len(drawn) == pytest.approx(1, abs=0.2), "unbiased"


def test_a_foretold_draw_depends_on_seed_number_and_outcomes_alone(shards: Record) -> None:
    recipe = recipe_of(7, by="foretold")
    one, other = (Curriculum(shards.files("train"), recipe) for _ in range(2))
    drawn = [one.draw(4, number, outcomes=RED) for number in range(6)]
    assert drawn == [other.draw(4, number, outcomes=RED) for number in reversed(range(6))][::-1]
    assert len({tuple(draw.pick.row for draw in of_draw) for of_draw in drawn}) == 6
    changed = Curriculum(shards.files("train"), recipe.model_copy(update={"seed": 1}))
    assert drawn[0] != changed.draw(4, 0, outcomes=RED)


def test_a_phase_draws_its_own_sites_by_what_the_phases_before_it_found(shards: Record) -> None:
    recipe = recipe_of(4, (4, "entropy < 1.5"), where="entropy < 2.5", by="foretold")
    curriculum = Curriculum(shards.files("train"), recipe)
    easy = [curriculum.take([Pick(0, row)], 0)[0].site for row in range(10)]
    assert {site.entropy for site in easy} == {1.0}
    outcomes = tuple(
        GroupOutcome(step, 0, row, site.target == b" red", 0.5) for step in range(4) for row, site in enumerate(easy)
    )
    drawn = [draw for number in range(30) for draw in curriculum.draw(4, number, outcomes=outcomes)]
    assert {draw.site.entropy for draw in drawn} == {1.0, 2.0} and {draw.pick.phase for draw in drawn} == {1}
    others = [draw.site.target for draw in drawn if draw.site.entropy == 2.0]
    assert others.count(b" red") / len(others) > 0.4, "2 of these 10 sites are red; their like had a gradient"


def test_targets_that_are_not_a_sites_own_are_not_foretold() -> None:
    with pytest.raises(ValueError, match="shuffled use uniform"):
        Recipe(
            name="a",
            policy=PolicyConfig(model="b"),
            task=TaskConfig(targets="shuffled"),
            sites=SitesConfig(by="foretold"),
        )

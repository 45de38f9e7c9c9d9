"""Shuffled targets: what a site's text goes on with tells nothing about what is paid for."""

from __future__ import annotations

from collections import Counter

import pytest

from pipeline.config.errors import UserError
from pipeline.config.recipe import PolicyConfig, Recipe
from pipeline.config.task import SitesConfig, TaskConfig
from pipeline.config.training import ObjectiveConfig, RolloutConfig
from pipeline.core.artifact import Record
from pipeline.grpo.data.curriculum import Curriculum
from pipeline.shards.reader import Site
from pipeline.task.reward import prefix_reward
from tests.grpo.colours import COLOURS, publish_shards
from tests.toys import byte_level_tokenizer

SITES, DRAWS = 30, 400


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder = tmp_path_factory.mktemp("shards")
    return publish_shards(folder, byte_level_tokenizer(folder / "tokenizer", ["a text"]), sites=SITES)


def drawn(shards: Record, targets: str, *, draws: int = DRAWS, seed: int = 0, where: str = "true") -> list[Site]:
    """Sites of so many draws of all sites, in their order."""
    recipe = Recipe(
        name="a",
        policy=PolicyConfig(model="b"),
        task=TaskConfig(targets=targets),  # type: ignore[arg-type]
        rollout=RolloutConfig(sites_per_step=SITES),
        sites=SitesConfig(where=where),
        seed=seed,
    )
    curriculum = Curriculum(shards.files("train"), recipe)
    return [draw.site for number in range(draws) for draw in curriculum.draw(0, number)]


def test_only_what_follows_is_another_sites_of_the_same_band(shards: Record) -> None:
    own = {site.site_id: site for site in drawn(shards, "own", draws=1)}
    of_band = {
        band: {(s.target, s.continuation, s.boundaries) for s in own.values() if s.band == band}
        for band in ("easy", "hard")
    }
    seen = {"easy": set(), "hard": set()}
    for site in drawn(shards, "shuffled"):
        true = own[site.site_id]
        assert (site.context, site.entropy, site.band) == (true.context, true.entropy, true.band)
        seen[site.band].add((site.target, site.continuation, site.boundaries))
    assert seen == of_band, "every continuation of the band comes up, and no other"


def test_whatever_is_predicted_earns_what_it_earns_anywhere(shards: Record) -> None:
    """What the text really goes on with is right as often as it follows any other site of the band."""
    own = {site.site_id: site for site in drawn(shards, "own", draws=1)}
    shuffled = drawn(shards, "shuffled")
    oracle = [prefix_reward(own[s.site_id].target, s.continuation, s.boundaries).reward for s in shuffled]
    shares = []
    for site in own.values():
        others = [o.target for o in own.values() if o.band == site.band and o.site_id != site.site_id]
        shares.append(others.count(site.target) / len(others))
    chance = sum(shares) / len(shares)
    assert 0.2 < chance < 1 / len(COLOURS), "a little below a quarter: the site itself is left out"
    assert sum(oracle) / len(oracle) == pytest.approx(chance, abs=0.012), "three standard errors"
    for site_id in own:
        counts = Counter(site.target for site in shuffled if site.site_id == site_id)
        assert max(counts.values()) < DRAWS / 2, "nothing to learn by heart"


def test_the_seed_decides(shards: Record) -> None:
    first = [site.target for site in drawn(shards, "shuffled", draws=3)]
    assert first == [site.target for site in drawn(shards, "shuffled", draws=3)]
    by_seed = {s.site_id: s.target for s in drawn(shards, "shuffled", draws=1, seed=1)}
    assert by_seed != {s.site_id: s.target for s in drawn(shards, "shuffled", draws=1)}


def test_a_site_alone_in_its_band_is_refused(shards: Record) -> None:
    with pytest.raises(UserError, match="at least two sites per band"):
        drawn(shards, "shuffled", draws=1, where="entropy < 1.5 AND site_id < '00000000000000000000000000000001'")


def test_shuffled_text_is_never_learned_as_text() -> None:
    with pytest.raises(ValueError, match="next_token"):
        Recipe(
            name="a",
            policy=PolicyConfig(model="b"),
            task=TaskConfig(targets="shuffled"),
            objective=ObjectiveConfig(next_token=0.1),
        )

"""Screening: a real policy's pass rates by site, and the training sites chosen by them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.config.errors import UserError
from pipeline.config.loading import load
from pipeline.config.recipe import Recipe
from pipeline.config.task import ScreenConfig, SitesConfig
from pipeline.core.artifact import Record
from pipeline.core.random_keys import random_key
from pipeline.core.tokenizer import CorpusTokenizer
from pipeline.grpo.data.curriculum import Curriculum
from pipeline.grpo.data.pass_rates import read_pass_rates, screening_of
from pipeline.grpo.rollout.sampler import Sampler
from pipeline.grpo.types import SamplingRequest
from stages.screen import screen
from tests.grpo.colours import COLOURS, context, make_policy, publish_shards, write_recipe
from tests.grpo.prompts import prompts_for
from tests.stages.published import InProcess


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, Record]:
    folder = tmp_path_factory.mktemp("screen")
    policy = make_policy(folder / "policy")
    recipe = load(Recipe, write_recipe(folder / "recipe.yaml", policy), ["screen.where=position = 5"])
    return folder, recipe, publish_shards(folder / "work", policy, sites=24)


@pytest.fixture(scope="module")
def screened(world: tuple[Path, Recipe, Record]) -> Record:
    folder, recipe, shards = world
    return screen(recipe, shards, work=folder / "work" / "colours", executor=InProcess())


def test_pass_rates_are_the_share_of_right_responses(world: tuple[Path, Recipe, Record], screened: Record) -> None:
    folder, recipe, _ = world
    tokens = CorpusTokenizer.load(folder / "policy")
    sampler = Sampler.load(folder / "policy", tokens)
    prompts = prompts_for(folder / "policy")
    found = dict(read_pass_rates(screened).select("site_id", "pass_rate").iter_rows())
    expected = {}
    for index in range(24):  # each site alone
        site_id = f"{index:032x}-5"
        seeds = [random_key("screen", recipe.seed, site_id, sample) for sample in range(4)]
        made = sampler.sample(SamplingRequest([prompts.ids(context(index).encode())], 4, 1.0, 16, seeds))
        answer = b"\\boxed{" + COLOURS[index % 4].encode() + b"}"
        expected[site_id] = sum(r.finished and answer in r.text for r in made) / 4
    assert found == expected
    assert 0 < sum(rate == 0 for rate in found.values()) < 24, "the test would see a constant"
    counters = screened.counters
    assert counters["sites"] == 24 == sum(counters[f"{name}_right"] for name in ("never", "sometimes", "always"))
    assert counters["never_right"] == sum(rate == 0 for rate in found.values())


def test_a_recipe_draws_only_sites_of_its_pass_rates(world: tuple[Path, Recipe, Record], screened: Record) -> None:
    folder, recipe, shards = world
    chosen = recipe.model_copy(update={"sites": SitesConfig(where="pass_rate > 0 AND pass_rate < 1"), "curriculum": ()})
    assert screening_of(chosen, shards, folder / "work" / "colours") == screened
    assert screening_of(recipe, shards, folder / "nowhere") is None, "it names no pass rate"
    rates = read_pass_rates(screened)
    drawn = {d.site.site_id for n in range(6) for d in Curriculum(shards.files("train"), chosen, rates).draw(0, n)}
    assert drawn == set(rates.filter((pl.col("pass_rate") > 0) & (pl.col("pass_rate") < 1))["site_id"])


def test_what_was_not_screened_is_not_chosen(world: tuple[Path, Recipe, Record]) -> None:
    folder, recipe, shards = world
    half = recipe.model_copy(update={"screen": ScreenConfig(where="band = 'easy'", samples=1)})
    record = screen(half, shards, work=folder / "half" / "colours", executor=InProcess())
    assert record.counters["sites"] == 8 and record.counters["dropped.screen_where"] == 16
    named = recipe.model_copy(update={"sites": SitesConfig(where="pass_rate >= 0"), "curriculum": ()})
    draws = Curriculum(shards.files("train"), named, read_pass_rates(record)).draw(0, 0)
    assert {draw.site.band for draw in draws} == {"easy"}


def test_naming_a_pass_rate_without_a_screening_says_what_to_run(world: tuple[Path, Recipe, Record]) -> None:
    folder, recipe, shards = world
    named = recipe.model_copy(update={"sites": SitesConfig(where="pass_rate > 0")})
    with pytest.raises(UserError, match="rpt screen"):
        screening_of(named, shards, folder / "nowhere")
    other = publish_shards(folder / "other", folder / "policy", sites=25)
    screen(recipe, shards, work=folder / "work" / "colours", executor=InProcess())
    with pytest.raises(UserError, match="other sites were screened"):
        screening_of(named, other, folder / "work" / "colours")
